"""Interchange: heads' outputs swapped between harmful prompts and their counterparts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import ResampleAblation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Group, HeadsLike, parse_heads
from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.odds import LogOdds
from safehead_tl.measures.openings import Openings
from safehead_tl.models import Model
from safehead_tl.prompts import Positions, Prompts, Template, prompt_texts
from safehead_tl.results import HeadScores, Interchange
from safehead_tl.scan import Beside, Run, Search, anywhere


@dataclass(frozen=True)
class _Both:
    """The fall of refusal log-odds and the divergence, one above the other."""

    odds: LogOdds
    divergence: Divergence

    def __call__(
        self, states: Float[Tensor, "head prompt d_model"]
    ) -> Float[Tensor, "two_prompts head"]:
        return torch.cat([self.odds(states), self.divergence(states)])


@anywhere
def interchange(
    model: Model,
    prompts: Prompts,
    counterparts: Prompts,
    *,
    openings: Openings | None = None,
    positions: Positions = "all",
    template: Template = "auto",
    candidates: HeadsLike | None = None,
    group: HeadsLike = (),
    run: Run = Run(),
) -> Interchange:
    """Swaps each head's output between harmful prompts and their harmless counterparts.

    Necessity: a head's output z in the prompt is replaced by that in its counterpart, and refusal
    log-odds fall. Sufficiency: z in the counterpart is replaced by that in the prompt, and they
    rise. Both as shares of the gap between the two runs (Geiger et al. 2021; "How Alignment
    Routes", arXiv 2604.04385). Unlike ablation nothing is out of distribution, and a head that
    suffices is told from one that is only needed. A gate that works through later heads is seen
    with all its effect, because these follow.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: harmful prompts.
        counterparts: the first prompt's, the second's, and so on: as alike as can be, but harmless;
            `pair_prompts` finds them in a set, `load_pairs` reads them.
        openings: how refusals and compliant answers open; `None`: the model's own first tokens on
            `prompts` and on `counterparts`, whatever these are: `notes()` names them.
        positions: where outputs are swapped: `"all"`, `"query"`, `"after"` (the template's tokens
            behind it) or `"last"`. The template is aligned with the template, the query by its
            ends.
        template: as in `ships`, and so the following.
        candidates: the heads to score.
        group: heads to interchange together too, once.
        run: how it runs.

    Returns:
        Both shares of every head, and Ships of the same swaps. Costs two scans, and two passes.

    Raises:
        SafeheadError: as `ships`; or if there are not as many counterparts as prompts, one is the
            prompt itself, or the prompts are no likelier refused than their counterparts (which
            they always are by openings of their own).

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=8)
        >>> pairs = sh.pair_prompts(model, prompts, "demo/benign")
        >>> swapped = sh.interchange(model, prompts, pairs)
        >>> [str(head) for head, _ in swapped.necessity.top(2)]
        ['L1H3', 'L2H6']
    """
    texts = prompt_texts(prompts), prompt_texts(counterparts, "counterparts")
    same = next((one for one, two in zip(*texts, strict=False) if one.split() == two.split()), None)
    if same is not None:
        raise SafeheadError(f"{same!r} is its own counterpart: give it another")
    ablations = [ResampleAblation(others, "paired", positions) for others in texts[::-1]]
    if openings is None:
        openings = Openings.of_answers(
            model, *texts, template=template, run=replace(run, run_dir=None, on=None)
        )
    found = [
        _one_way(model, some, template, ablation, openings, candidates, group, run, name)
        for some, ablation, name in zip(texts, ablations, ("necessity", "sufficiency"), strict=True)
    ]
    (lost, first), (gained, second) = found
    gap = first.odds - second.odds
    if not gap.mean() > 0:
        raise SafeheadError(
            f"the prompts are no likelier refused than their counterparts: log-odds differ by "
            f"{gap.mean():.3g} nats on average. Does this model refuse them, and are the openings "
            "right?"
        )
    lengths = [batch.mask.sum(1) for batch in (first.search.batch, second.search.batch)]
    share = gap.mean()
    return Interchange(
        necessity=first.scores("necessity", lost[0] / share),
        sufficiency=second.scores("sufficiency", -gained[0] / share),
        necessity_kl=first.scores("ships", lost[1]),
        sufficiency_kl=second.scores("ships", gained[1]),
        gap=gap,
        unequal=int((lengths[0] != lengths[1]).sum()),
        group=first.group,
        group_shares=(
            (float(first.together / share), float(-second.together / share))
            if first.group
            else None
        ),
    )


@dataclass(frozen=True)
class _Way:
    """What one direction gave."""

    search: Search
    odds: Float[Tensor, " prompt"]
    settings: dict[str, Any]
    group: Group
    together: float

    def scores(self, measure: str, per_prompt: Float[Tensor, "prompt layer head"]) -> HeadScores:
        return HeadScores(
            measure=measure,
            unit="nats" if measure == "ships" else "share",
            values=per_prompt.mean(0),
            per_prompt=per_prompt,
            given=(),
            provenance=self.search.provenance(self.settings),
            signed=measure != "ships",
        )


def _one_way(
    model: Model,
    prompts: tuple[str, ...],
    template: Template,
    ablation: ResampleAblation,
    openings: Openings,
    candidates: HeadsLike | None,
    group: HeadsLike,
    run: Run,
    name: str,
) -> tuple[Float[Tensor, "two prompt layer head"], _Way]:
    """The fall of log-odds and the divergence on some prompts, with outputs from the others."""

    def beside(config: Any) -> Beside:
        odds, divergence = LogOdds.beside(openings, None, config), Divergence.beside(None, config)
        return replace(divergence, a_prompt=odds.a_prompt + divergence.a_prompt)

    if run.run_dir is not None:
        run = replace(run, run_dir=Path(run.run_dir) / name)
    search = Search.start(model, prompts, template, ablation, run, beside)
    scored, together = search.candidates(candidates), parse_heads(group, *search.shape)
    settings = {
        "openings": openings.describe(model),
        "positions": ablation.positions,
        "group": [str(head) for head in together],
    }
    search.open_directory(name, settings, scored)
    odds = LogOdds(model, openings, search.original)
    both = _Both(odds, Divergence(model, search.original, search.passes, search.plan.budget))
    found = search.score(both, scored, (), name)
    moved = search.together(odds, (), together) if together else 0.0
    return found.unflatten(0, (2, -1)), _Way(search, odds.before.cpu(), settings, together, moved)

"""Refusal log-odds as a measure of states: towards refusal or away from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import HeadsLike, parse_heads
from safehead_tl.measures.openings import Openings
from safehead_tl.models import Model, next_token_logits
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import HeadScores
from safehead_tl.scan import (
    Beside,
    Linearisation,
    Run,
    Screen,
    Screening,
    Search,
    resolve_screen,
    score,
    screening_settings,
)

TOP = 10
"""How many of the highest heads screening has to get right, unless it is told."""


@dataclass(frozen=True)
class LogOdds:
    """How far refusal log-odds fall: log P(refusal openings) - log P(compliance openings).

    The sums over the vocabulary cancel, so only the openings are unembedded.

    Attributes:
        model: the model.
        openings: first tokens of refusals and of compliant answers.
        original: the original model's last states.
    """

    model: Model
    openings: Openings
    original: Float[Tensor, "prompt d_model"]
    power: ClassVar[int] = 1
    signed: ClassVar[bool] = True

    @staticmethod
    def beside(openings: Openings, screening: Screening | None, config: Any) -> Beside:
        """What it takes: scores, and to screen one gradient."""
        if not isinstance(openings, Openings):
            raise SafeheadError(
                f"openings={openings!r}: give Openings, such as Openings.of_answers(model, "
                "harmful, harmless)"
            )
        scores = config.n_layers * config.n_heads * 8
        return Beside(0, scores) if screening is None else Beside(0, 3 * scores, 1)

    def of(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The log-odds at last states, in nats."""
        refusal, compliance = self.openings.on(self.model)
        logits = next_token_logits(self.model, states, torch.cat([refusal, compliance]))
        first, second = logits.split([len(refusal), len(compliance)], -1)
        return first.logsumexp(-1) - second.logsumexp(-1)

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "head prompt d_model"]
    ) -> Float[Tensor, "prompt head"]:
        """How far they fall with each head ablated, on each prompt."""
        return (
            self.of(self.original) - self.of(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        ).T

    def screened(
        self,
        states: Float[Tensor, "prompt d_model"],
        linear: Linearisation,
        screening: Screening,
    ) -> Float[Tensor, "layer head"]:
        """Every head's mean over prompts, from first-order changes of the last states.

        Args:
            states: the last states of the run that heads are ablated from.
            linear: first-order changes of the last states.
            screening: not used: one direction tells all.
        """
        slope = self.pull(states, slice(None))
        with torch.no_grad():
            already = (self.of(self.original) - self.of(states)).mean().cpu()
        changes = linear.by_parts(1, lambda part: slope[:, part], lambda some: some[0].sum(0))
        return already + torch.stack(changes).sum(0).double() / len(states)

    def pull(
        self, states: Float[Tensor, "prompt d_model"], prompts: slice
    ) -> Float[Tensor, "1 prompt d_model"]:
        """The gradient of their fall at the last states of some prompts."""
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            fall = -self.of(at).sum()
        return torch.autograd.grad(fall, at)[0][None]


def refusal_log_odds(
    model: Model,
    prompts: Prompts,
    openings: Openings,
    *,
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    candidates: HeadsLike | None = None,
    given: HeadsLike = (),
    screen: Screen = "off",
    run: Run = Run(),
) -> HeadScores:
    """Scores heads by how far ablating each lowers the log-odds of a refusal.

    The log-odds are log P(refusal openings) - log P(compliance openings) at the last prompt token.
    A score is how far they *fall*: above 0, the head carries refusal, and without it help is
    likelier; below 0, it works against refusal. Ships has no such sign. What the answer moves to
    outside both sets of openings, such as gibberish, is not seen: Ships sees that.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`.
        openings: the first tokens of refusals and of compliant answers.
        template: as in `ships`, and so the following.
        ablation: an ablation or its name.
        candidates: the heads to score.
        given: heads that are ablated together with each candidate.
        screen: which heads are scored exactly; the highest are looked for, not the lowest.
        run: how it runs.

    Returns:
        Scores in nats, with a sign, `values` averaged over prompts and `per_prompt`. Costs as much
        as `ships`, less the unembedding.

    Raises:
        SafeheadError: as `ships`; or for openings that this model does not have.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> openings = sh.Openings.of_answers(model, "demo/harmful", "demo/benign")
        >>> scores = sh.refusal_log_odds(model, prompts, openings)
        >>> [str(head) for head, _ in scores.top(2)]
        ['L1H3', 'L2H6']
    """
    screening = resolve_screen(screen)
    beside = partial(LogOdds.beside, openings, screening)
    search = Search.start(model, prompts, template, ablation, run, beside)
    openings.on(model)
    ablated = parse_heads(given, *search.shape)
    scored = search.candidates(candidates, ablated)
    settings = {
        "openings": openings.describe(),
        "given": [str(head) for head in ablated],
        **screening_settings(screening),
    }
    search.open_directory("refusal_log_odds", settings, scored)
    measure = LogOdds(model, openings, search.original)
    label = "refusal log-odds"
    per_prompt, screened = score(search, measure, scored, ablated, label, screening, TOP)
    return HeadScores(
        measure="refusal_log_odds",
        unit="nats",
        values=per_prompt.mean(0),
        per_prompt=per_prompt,
        given=ablated,
        provenance=search.provenance(settings),
        screening=screened,
        signed=True,
    )

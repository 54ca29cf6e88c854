"""Integrated gradients: heads' shares of what ablating all of them does."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import HeadsLike, parse_heads
from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.odds import LogOdds
from safehead_tl.measures.openings import Openings
from safehead_tl.models import Model
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import HeadScores
from safehead_tl.scan import Beside, Run, Screening, Search, anywhere

POINT = Screening(probes=1)
"""One gradient at a time, in the words of screening."""


@anywhere
def integrated_gradients(
    model: Model,
    prompts: Prompts,
    *,
    openings: Openings | None = None,
    points: int = 8,
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    given: HeadsLike = (),
    run: Run = Run(),
) -> HeadScores:
    """Shares among heads what ablating all of them at once does to the next token.

    Every head's output z goes evenly to what it is with the head ablated, all together, and a head
    counts by its gradient times its change, integrated over that way (Sundararajan et al. 2017; for
    circuits Hanna et al. 2024, arXiv 2403.17806). What is saturated where the model is, and has no
    slope there, may have one on the way. But the way leaves the model: heads that undo each other
    all along it have no share, whatever each does alone.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`.
        openings: share the fall of the refusal log-odds; by default Ships.
        points: where gradients are taken; the sum of all scores comes closer to what ablating all
            heads does with more. `provenance.settings` has both, as `sum` and `whole`.
        template: as in `ships`, and so the following.
        ablation: an ablation or its name.
        given: heads that are ablated from the start.
        run: how it runs.

    Returns:
        Scores in nats, with a sign, of each prompt and averaged. Costs six passes of each prompt
        for each point, whatever the number of heads.

    Raises:
        SafeheadError: as `ships`; for fewer than one point, an ablation that acts outside
            attention, or gradients that overflow.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> scores = sh.integrated_gradients(model, prompts)
        >>> [str(head) for head, _ in scores.top(2)]
        ['L1H3', 'L2H6']
    """
    if not isinstance(points, int) or isinstance(points, bool) or points < 1:
        raise SafeheadError(f"points={points!r}: give a number from 1")

    def beside(config: Any) -> Beside:
        if openings is None:
            return Divergence.beside(POINT, config)
        return LogOdds.beside(openings, POINT, config)

    search = Search.start(model, prompts, template, ablation, run, beside)
    group = parse_heads(given, *search.shape)
    scored = search.candidates(None, group)
    settings = {
        "points": points,
        "openings": None if openings is None else openings.describe(model),
        "given": [str(head) for head in group],
    }
    search.open_directory("integrated_gradients", settings, scored)
    measure: Divergence | LogOdds
    if openings is None:
        measure = Divergence(model, search.original, search.passes, search.plan.budget)
    else:
        measure = LogOdds(model, openings, search.original)
    compute = partial(search.linearisation(group).integrated, measure.pull, points)
    found = search.by_prompts("integrated", compute, "integrated gradients")
    if not found.isfinite().all():
        raise SafeheadError(
            "integrated gradients are not finite numbers: the model overflows with all heads on "
            "their way. Load it with dtype='bfloat16' or 'float32', or take another ablation"
        )
    with torch.no_grad():
        start = float(measure(search.last(group)[None]).mean())
    end = search.together(measure, group, scored)
    per_prompt = torch.full_like(found, torch.nan)
    where = tuple(map(list, zip(*scored, strict=True)))
    per_prompt[:, where[0], where[1]] = found[:, where[0], where[1]]
    values: Tensor = per_prompt.mean(0)
    sums = {"sum": float(values[where].sum()), "whole": end - start}
    return HeadScores(
        measure="integrated_gradients",
        unit="nats",
        values=values,
        per_prompt=per_prompt,
        given=group,
        provenance=search.provenance({**settings, **sums}),
        signed=True,
    )

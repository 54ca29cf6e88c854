"""The short list: heads that screen highest are scored exactly, until the top is safe."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.results import Ending, Screened, spearman
from safehead_tl.scan.linearisation import Linearisation
from safehead_tl.scan.screening import Limits, Screening, draw_audit, expected_missed
from safehead_tl.scan.search import Search

logger = logging.getLogger(__name__)

TURNS = 3
"""Heads of the list that go by the first estimate, for each that goes by another."""

GROWTH = 1.25
"""The short list grows to so many times its length."""


@runtime_checkable
class ScreeningMeasure(Protocol):
    """A measure that is exact from states, and estimated from their first-order changes.

    The first estimate is the score itself; more may be given, to look for heads in their order too.
    """

    def __call__(self, states: Float[Tensor, "head prompt d_model"]) -> Float[Tensor, "_ head"]:
        """The exact scores of heads, one row for each prompt or for all."""
        ...

    def screened(
        self,
        states: Float[Tensor, "prompt d_model"],
        linear: Linearisation,
        screening: Screening,
    ) -> Float[Tensor, "order layer head"]:
        """Estimates of all heads' scores, to first order; the first row is the screened score."""
        ...


def score(
    search: Search,
    measure: ScreeningMeasure,
    candidates: Sequence[Head],
    group: tuple[Head, ...],
    label: str,
    screening: Screening | None,
    top: int,
) -> tuple[Float[Tensor, "prompt layer head"], Screened | None]:
    """Scores candidates exactly: all of them, or those that screening chooses.

    Args:
        search: the model, its prompts and the ablation.
        measure: what the score is.
        candidates: the heads to score.
        group: heads ablated with each of them.
        label: the progress bar's.
        screening: how to screen; `None`: not at all.
        top: how many of the highest heads must be right, unless `screening` says.

    Returns:
        The exact scores, NaN for heads without; and what screening found.
    """
    if screening is None:
        return search.score(measure, candidates, group, label), None
    limits = screening.limits(top, len(candidates))
    screened, order = _screen(search, measure, candidates, group, screening)
    audited = draw_audit(order[limits.first :], screening.audit, screening.seed)
    exact = search.score(measure, [*order[: limits.first], *audited], group, label)
    length = limits.first
    while True:
        values = exact.mean(0)
        ended, missed, cut = _judge(
            values, screened, order, length, audited, limits, screening.tolerance
        )
        if ended is not None:
            break
        longer = min(math.ceil(GROWTH * length), limits.budget)
        more = [head for head in order[length:longer] if head not in audited]
        length = longer
        if more:
            found = search.score(measure, more, group, f"{label}, longer list")
            exact = exact.where(found.isnan(), found)
    both = ~values.isnan()
    in_top = [head for head in audited if values[head] >= cut]
    outcome = Screened(
        values=screened,
        exact=int(both.sum()),
        ended=ended,
        missed=missed,
        cut=cut,
        spearman=spearman(screened[both], values[both]),
        audited=audited,
        surprises=tuple(head for head in in_top if head not in order[:length]),
        settings={**asdict(screening), **asdict(limits)},
    )
    if ended == "budget" or outcome.surprises:
        logger.warning("%s: %s", label, outcome.sentence())
    return exact, outcome


def _screen(
    search: Search,
    measure: ScreeningMeasure,
    candidates: Sequence[Head],
    group: tuple[Head, ...],
    screening: Screening,
) -> tuple[Float[Tensor, "layer head"], list[Head]]:
    """The screened scores, NaN for heads that are no candidates; and in what order to go on."""

    def run() -> Tensor:
        return measure.screened(search.last(group), search.linearisation(group), screening)

    found = search.ledger.kept(
        f"with{len(group)}-screened", {"group": [str(head) for head in group]}, run
    )
    if not found.isfinite().all():
        raise SafeheadError(
            "screened scores are not finite numbers: gradients overflow. Use screen='off', or "
            "load the model with dtype='bfloat16' or 'float32'"
        )
    ranked = [sorted(candidates, key=lambda head: (-values[head].item(), head)) for values in found]
    wanted = torch.zeros(search.shape, dtype=torch.bool)
    wanted[tuple(zip(*candidates, strict=True))] = True
    return found[0].where(wanted, torch.nan), _in_turn(*ranked)


def _in_turn(first: list[Head], *others: list[Head]) -> list[Head]:
    """All heads: some in the first order, then one of each other order, and again."""
    found: dict[Head, None] = {}
    rest = [iter(order) for order in (first, *others)]
    while len(found) < len(first):
        for heads, turns in zip(rest, (TURNS, *(1 for _ in others)), strict=True):
            new = (head for head in heads if head not in found)
            found.update(dict.fromkeys(itertools.islice(new, turns)))
    return list(found)


def _judge(
    exact: Float[Tensor, "layer head"],
    screened: Float[Tensor, "layer head"],
    order: Sequence[Head],
    length: int,
    audited: Sequence[Head],
    limits: Limits,
    tolerance: float,
) -> tuple[Ending | None, float, float]:
    """Whether to stop and why; how many of the top may be missed; the cut."""
    known = exact[~exact.isnan()]
    cut = known.topk(min(limits.top, len(known))).values[-1].item()
    others = [head for head in order[length:] if head not in audited]
    if not others:
        return "all", 0.0, cut
    compared = list(dict.fromkeys([*order[length // 2 : length], *audited]))
    missed = expected_missed(
        _at(screened, others), _at(screened, compared), _at(exact, compared), cut
    )
    if missed <= tolerance:
        return "sure", missed, cut
    return ("budget" if length >= limits.budget else None), missed, cut


def _at(values: Float[Tensor, "layer head"], heads: Sequence[Head]) -> Float[Tensor, " some"]:
    return values[tuple(zip(*heads, strict=True))]

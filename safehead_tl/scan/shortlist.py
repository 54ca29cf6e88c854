"""The short list: heads that screen highest are scored exactly, the others checked in blocks."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.results import Ending, Screened, spearman
from safehead_tl.scan.blocks import EXPLAINED, cut_up, halve
from safehead_tl.scan.linearisation import Linearisation
from safehead_tl.scan.screening import Screening, draw_audit, expected_missed
from safehead_tl.scan.search import Search

logger = logging.getLogger("safehead_tl")

TURNS = 7
"""Heads of the list that go by the first estimate, for each that goes by another."""

ON_THE_WAY = 8
"""Prompts whose gradients are integrated: these only put heads in an order."""

GROWTH = 1.1
"""The short list grows to so many times its length."""


@runtime_checkable
class ScreeningMeasure(Protocol):
    """A measure that is exact from states, and estimated from their first-order changes.

    Attributes:
        power: to which power scores of heads that act apart add up.
        signed: whether scores may be below 0, and undo each other.
    """

    power: ClassVar[int]
    signed: ClassVar[bool]

    def __call__(self, states: Float[Tensor, "head prompt d_model"]) -> Float[Tensor, "_ head"]:
        """The exact scores of heads, one row for each prompt or for all."""
        ...

    def screened(
        self, states: Float[Tensor, "prompt d_model"], linear: Linearisation, screening: Screening
    ) -> Float[Tensor, "layer head"]:
        """Estimates of all heads' scores, to first order."""
        ...

    def pull(
        self, states: Float[Tensor, "prompt d_model"], prompts: slice
    ) -> Float[Tensor, "1 prompt d_model"]:
        """The gradient, at last states of some prompts, of how far they are from the original's."""
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
    listed, others = order[: limits.first], order[limits.first :]
    audited = draw_audit(others, screening.audit, screening.seed)
    exact = search.score(measure, [*listed, *audited], group, label)

    def also(heads: Sequence[Head], why: str) -> Tensor:
        found = search.score(measure, heads, group, f"{label}, {why}")
        return exact.where(found.isnan(), found)

    cut, effects, none = _cut(exact, limits.top), torch.zeros(search.shape), 0.0
    undone = effects
    blocks = list[tuple[Head, ...]]()
    if screening.blocks:
        none = float(measure(search.last(group)[None]).mean())
        effects = (screened - none).clamp(min=0) ** measure.power
        undone = (none - screened).clamp(min=0) * measure.signed
        room = (max(cut - none, 0) / EXPLAINED) ** measure.power
        left = [head for head in others if head not in audited]
        blocks = cut_up(left, effects, room, screening.blocks)
    alone = [block[0] for block in blocks if len(block) == 1]  # these screen near the cut
    if alone:
        exact, listed = also(alone, "longer list"), [*listed, *alone]
    tested = halve(
        [block for block in blocks if len(block) > 1],
        lambda block: search.together(measure, group, block) + float(_at(undone, block).sum()),
        lambda block: none + EXPLAINED * float(_at(effects, block).sum()) ** (1 / measure.power),
        _cut(exact, limits.top),
    )
    if tested.suspects:
        exact = also(tested.suspects, "halved blocks")
    while True:
        values, cut = exact.mean(0), _cut(exact, limits.top)
        cleared = tested.cleared(cut)
        left = [head for head in order if values[head].isnan() and head not in cleared]
        missed = _missed(values, screened, left, listed, audited, cut)
        more = min(math.ceil(GROWTH * len(listed)), limits.budget) - len(listed)
        if missed <= screening.tolerance or more <= 0:
            break
        exact, listed = also(left[:more], "longer list"), [*listed, *left[:more]]
    both = ~values.isnan()
    explained, most = tested.explained(cut)
    beyond = {*audited} & {*order[max(map(order.index, listed)) + 1 :]}
    found = tuple(head for head in tested.suspects if values[head] >= cut)
    surprises = tuple(sorted(head for head in beyond if values[head] >= cut))
    unopened = len({*left} - explained) if tested.blocks else 0
    doubtful = found or surprises or unopened or missed > screening.tolerance
    everything: Ending = "all" if both.sum() == len(order) else "blocks"
    outcome = Screened(
        values=screened,
        exact=int(both.sum()),
        runs=tested.runs,
        cleared=len(order) - int(both.sum()) - len(left),
        explained=len({*left} & explained),
        limit=most,
        unopened=unopened,
        ended=everything if not left else "open" if doubtful else "estimate",
        missed=missed,
        cut=cut,
        spearman=spearman(screened[both], values[both]),
        found=found,
        audited=audited,
        drawn=len(beyond),
        surprises=surprises,
        settings={**asdict(screening), **asdict(limits)},
    )
    if outcome.ended == "open":
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
        linear = search.linearisation(group)
        found = [measure.screened(search.last(group), linear, screening)]
        if screening.points:
            every = range(len(search.batch.prompts))
            few = every[:: -(-len(every) // ON_THE_WAY)]
            on_the_way = linear.integrated(measure.pull, screening.points, few)
            found.append(on_the_way.mean(0).abs())
        return torch.stack(found)

    found = search.ledger.kept(
        f"{search.piece_with(group)}-screened", {"group": [str(head) for head in group]}, run
    )
    if not found[0].isfinite().all():
        raise SafeheadError(
            "screened scores are not finite numbers: gradients overflow. Use screen='off', or "
            "load the model with dtype='bfloat16' or 'float32'"
        )
    orders = [values for values in found if values.isfinite().all()]  # on the way more overflows
    ranked = [sorted(candidates, key=lambda head: (-of[head].item(), head)) for of in orders]
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


def _cut(exact: Float[Tensor, "prompt layer head"], top: int) -> float:
    """The lowest exact score of the top."""
    values = exact.mean(0)
    known = values[~values.isnan()]
    return known.topk(min(top, len(known))).values[-1].item()


def _missed(
    exact: Float[Tensor, "layer head"],
    screened: Float[Tensor, "layer head"],
    left: Sequence[Head],
    listed: Sequence[Head],
    audited: Sequence[Head],
    cut: float,
) -> float:
    """How many of the top are expected among the heads that are left."""
    if not left:
        return 0.0
    compared = [*listed[len(listed) // 2 :], *audited]
    return expected_missed(_at(screened, left), _at(screened, compared), _at(exact, compared), cut)


def _at(values: Float[Tensor, "layer head"], heads: Sequence[Head]) -> Float[Tensor, " some"]:
    return values[tuple(zip(*heads, strict=True))]

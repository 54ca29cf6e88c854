"""Blocks: the heads that a short list leaves out, ablated together and exactly.

What a block moves is compared with what the screened scores of its heads add up to. If it is more,
something was not seen, and the block is halved until the heads are found. That finds what acts
through something saturated, which has no slope: group testing, at the cost of a few passes. Only
heads that undo each other in one block stay hidden.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from safehead_tl.heads import Head

FEWEST = 16
"""Blocks of at least so many heads, where nothing else speaks for smaller ones."""

EXPLAINED = 2.0
"""A block may move so many times what its screened scores add up to."""

HALVES = 4
"""Halves that are ablated, at most, for each block."""


@dataclass
class Tested:
    """What ablating heads together has shown.

    Attributes:
        blocks: what each block that was not halved moves, the most that its screened scores
            explain, and its heads.
        suspects: heads that blocks were halved down to, to be scored by themselves.
        runs: how many blocks, and halves of blocks, were ablated.
    """

    blocks: list[tuple[float, float, tuple[Head, ...]]] = field(default_factory=list)
    suspects: list[Head] = field(default_factory=list)
    runs: int = 0

    def cleared(self, cut: float) -> set[Head]:
        """Heads of blocks that move less than a cut."""
        return {head for value, _, block in self.blocks if value < cut for head in block}

    def explained(self, cut: float) -> tuple[set[Head], float]:
        """Heads of blocks that move more, but no more than is explained; the most that is."""
        some = [(most, block) for value, most, block in self.blocks if cut <= value <= most]
        heads = {head for _, block in some for head in block}
        return heads, max((most for most, _ in some), default=0.0)


def cut_up(
    heads: Sequence[Head], effects: Float[Tensor, "layer head"], room: float, most: int
) -> list[tuple[Head, ...]]:
    """Cuts heads into blocks of neighbouring layers, so that a run can begin at the lowest.

    Args:
        heads: the heads.
        effects: what each adds to what its block moves, as far as screening knows.
        room: what these should add up to in a block; if it takes too many blocks, more.
        most: most blocks.
    """
    largest = max(FEWEST, math.ceil(1.5 * len(heads) / most))
    room = max(room, sum(float(effects[head]) for head in heads) / most)
    while True:
        blocks, used = list[list[Head]](), math.inf
        for head in sorted(heads, reverse=True):
            used += float(effects[head])
            if used > room or len(blocks[-1]) == largest:
                blocks.append([])
                used = float(effects[head])
            blocks[-1].append(head)
        if len(blocks) <= most:
            return [tuple(sorted(block)) for block in blocks]
        room *= 2


def halve(
    blocks: Sequence[tuple[Head, ...]],
    score: Callable[[tuple[Head, ...]], float],
    limit: Callable[[tuple[Head, ...]], float],
    cut: float,
) -> Tested:
    """Ablates blocks, and halves of those that move more than is explained, down to single heads.

    To find a head in a block of n takes up to 2 log2(n) - 2 runs beyond the block's own.

    Args:
        blocks: which heads are ablated together, two or more.
        score: the exact score of such a block.
        limit: the most that its screened scores explain.
        cut: the lowest exact score of the top.
    """
    tested, runs = Tested(), (1 + HALVES) * len(blocks)
    waiting = [(-math.inf, block) for block in blocks]  # all of these first, then what moves most
    while waiting:
        before, block = heapq.heappop(waiting)
        if len(block) == 1:
            tested.suspects += block
            continue
        if tested.runs == runs:
            tested.blocks.append((-before, limit(block), block))
            continue
        value, most = score(block), limit(block)
        tested.runs += 1
        if value < cut or value <= most:
            tested.blocks.append((value, most, block))
            continue
        middle = len(block) // 2
        for half in (block[:middle], block[middle:]):
            heapq.heappush(waiting, (-value, half))
    return tested

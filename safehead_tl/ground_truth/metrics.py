"""How well an order of heads agrees with the truth."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from safehead_tl.heads import Head


def precision_at(k: int, order: Sequence[Head], wanted: Collection[Head]) -> float:
    """The share of the first `k` heads that are wanted."""
    return sum(head in wanted for head in order[:k]) / k


def average_precision(order: Sequence[Head], wanted: Collection[Head]) -> float:
    """The precision down to each wanted head, averaged over them; 1 if they come first."""
    places = [place for place, head in enumerate(order, 1) if head in wanted]
    return sum(found / place for found, place in enumerate(places, 1)) / len(wanted)


def above(heads: Collection[Head], order: Sequence[Head], wanted: Collection[Head]) -> int:
    """How many of some heads come before the last wanted one."""
    last = max(order.index(head) for head in wanted)
    return sum(order.index(head) < last for head in heads)

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


def chance(k: int, heads: int) -> dict[str, float]:
    """What a random order of so many heads is expected to reach, `k` of them wanted."""
    harmonic = sum(1 / place for place in range(1, heads + 1))
    others = (k - 1) / (heads - 1) if heads > 1 else 0.0
    return {
        "precision@k": k / heads,
        "average precision": (harmonic + others * (heads - harmonic)) / heads,
    }


def above(heads: Collection[Head], order: Sequence[Head], wanted: Collection[Head]) -> int:
    """How many of some heads come before the last wanted one."""
    last = max(order.index(head) for head in wanted)
    return sum(order.index(head) < last for head in heads)

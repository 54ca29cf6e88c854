"""How well an order of heads finds the planted ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from safehead_tl.heads import Head


def precision_at(k: int, order: Sequence[Head], planted: Collection[Head]) -> float:
    """The share of the first `k` heads that were planted."""
    return sum(head in planted for head in order[:k]) / k


def recall_at(k: int, order: Sequence[Head], planted: Collection[Head]) -> float:
    """The share of the planted heads that are among the first `k`."""
    return sum(head in planted for head in order[:k]) / len(planted)


def average_precision(order: Sequence[Head], planted: Collection[Head]) -> float:
    """The precision down to each planted head, averaged over them; 1 if they come first."""
    places = [place for place, head in enumerate(order, 1) if head in planted]
    return sum(found / place for found, place in enumerate(places, 1)) / len(planted)


def chance(k: int, heads: int) -> dict[str, float]:
    """What a random order of so many heads is expected to reach, `k` of them planted."""
    harmonic = sum(1 / place for place in range(1, heads + 1))
    others = (k - 1) / (heads - 1) if heads > 1 else 0.0
    return {
        "precision": k / heads,
        "recall": min(1.0, 2 * k / heads),
        "average_precision": (harmonic + others * (heads - harmonic)) / heads,
    }


def above(heads: Collection[Head], order: Sequence[Head], planted: Collection[Head]) -> int:
    """How many of some heads come before the last planted one."""
    last = max(order.index(head) for head in planted)
    return sum(order.index(head) < last for head in heads)

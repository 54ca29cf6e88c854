"""Random sets of heads to compare with: as many in each layer as the chosen ones."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from safehead_tl.heads import Group, Head


def matched_controls(
    heads: Sequence[Head], n_heads: int, draws: int, seed: int
) -> tuple[Group, ...]:
    """Distinct sets with as many heads in each layer as `heads`, and none of `heads` themselves.

    Where a layer has too few others, some of the chosen ones fill up; no set is `heads` again.

    Args:
        heads: the chosen heads.
        n_heads: heads in a layer.
        draws: how many sets to draw; if there are no more than that, all are taken.
        seed: of the draw.
    """
    layers = []
    for layer in sorted({head.layer for head in heads}):
        own = sorted(head for head in heads if head.layer == layer)
        others = [head for head in _layer(layer, n_heads) if head not in own]
        layers.append((others, min(len(own), len(others)), own, max(0, len(own) - len(others))))
    possible = math.prod(
        math.comb(len(others), some) * math.comb(len(own), rest)
        for others, some, own, rest in layers
    )
    if possible <= draws:
        choices = [
            [(*a, *b) for a in _sets(others, some) for b in _sets(own, rest)]
            for others, some, own, rest in layers
        ]
        every = (tuple(sorted(sum(parts, ()))) for parts in itertools.product(*choices))
        return tuple(group for group in every if set(group) != set(heads))
    generator, found = random.Random(seed), dict[Group, None]()
    while len(found) < draws:
        drawn = [
            head
            for others, some, own, rest in layers
            for head in (*generator.sample(others, some), *generator.sample(own, rest))
        ]
        if set(drawn) != set(heads):
            found[tuple(sorted(drawn))] = None
    return tuple(found)


def _layer(layer: int, n_heads: int) -> list[Head]:
    return [Head(layer, head) for head in range(n_heads)]


def _sets(heads: Sequence[Head], count: int) -> list[Group]:
    return list(itertools.combinations(heads, count))

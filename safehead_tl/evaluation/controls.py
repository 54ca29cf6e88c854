"""Random sets of heads to compare with: like the chosen ones in where they lie."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from safehead_tl.heads import Group, Head, Variant

Drawn = TypeVar("Drawn", bound=Variant)


@dataclass(frozen=True)
class Controls(Generic[Drawn]):
    """Random sets of heads.

    Attributes:
        sets: distinct ones.
        layers: 1 if each set has as many heads in each layer as the chosen ones have; more if it
            has as many in each so many layers that follow each other.
        possible: how many such sets there are.
        of_each: each prompt has sets of its own; then the widest blocks, and the fewest sets.
    """

    sets: tuple[Drawn, ...]
    layers: int
    possible: int
    of_each: bool = False

    def describe(self) -> dict[str, Any]:
        """What a provenance keeps of how they were drawn."""
        told = {name: getattr(self, name) for name in ("layers", "possible", "of_each")}
        return {**told, "drawn": len(self.sets)}


def drawn_words(told: Mapping[str, Any]) -> str:
    """What `Controls.describe` says, in words."""
    like = "layer" if told["layers"] == 1 else f"blocks of {told['layers']} layers"
    if told["of_each"]:
        narrower = "" if told["layers"] == 1 else " at most"
        return (
            f"{told['drawn']} sets of heads for each prompt, of {told['possible']:,} possible ones "
            f"or more, matched by {like}{narrower}"
        )
    return f"{told['drawn']} of {told['possible']:,} possible sets of heads, matched by {like}"


def draw_controls(
    chosen: Sequence[Head],
    n_layers: int,
    n_heads: int,
    draws: int,
    seed: int,
    spared: Collection[Head] = (),
) -> Controls[Group]:
    """Draws distinct sets in the layers of `chosen` that share no head with it, or with `spared`.

    A test against few sets cannot give a small p-value. So where the same layers hold fewer than
    `draws` such sets, blocks of two layers take their place, then of three, up to all layers.
    If there are still fewer, all that there are come out; where most heads are chosen, some of them
    fill up, but no set is `chosen` again.
    """
    for layers in range(1, n_layers + 1):
        blocks = []
        for first in range(0, n_layers, layers):
            block = range(first, min(first + layers, n_layers))
            own = sorted(head for head in chosen if head.layer in block)
            every = (Head(layer, head) for layer in block for head in range(n_heads))
            others = [head for head in every if head not in own and head not in spared]
            some = min(len(own), len(others))
            blocks.append((others, some, own, len(own) - some))
        possible = math.prod(
            math.comb(len(others), some) * math.comb(len(own), rest)
            for others, some, own, rest in blocks
        )
        if possible >= draws and not any(rest for *_, rest in blocks):
            break
    if not any(some for _, some, _, _ in blocks):
        return Controls((), layers, 0)  # every head is chosen
    if possible <= draws:
        choices = [
            [
                (*drawn, *kept)
                for drawn in itertools.combinations(others, some)
                for kept in itertools.combinations(own, rest)
            ]
            for others, some, own, rest in blocks
        ]
        every_set = (tuple(sorted(sum(parts, ()))) for parts in itertools.product(*choices))
        return Controls(tuple(every_set), layers, possible)
    generator, found = random.Random(seed), dict[Group, None]()
    while len(found) < draws:
        drawn = [
            head
            for others, some, own, rest in blocks
            for head in (*generator.sample(others, some), *generator.sample(own, rest))
        ]
        found[tuple(sorted(drawn))] = None
    return Controls(tuple(found), layers, possible)


def draw_for_each(
    chosen: Sequence[Group], n_layers: int, n_heads: int, draws: int, seed: int
) -> Controls[tuple[Group, ...]]:
    """Draws sets for each prompt by itself, like its own heads as `draw_controls` has them.

    A control is one set for each prompt, in random order: prompts that chose the same heads do not
    share their sets. There are as many controls as the prompt with the fewest sets has.
    """
    drawn, orders = [], []
    for place, group in enumerate(chosen):
        drawn.append(draw_controls(group, n_layers, n_heads, draws, seed + place))
        sets = drawn[-1].sets
        orders.append(random.Random(f"{seed} {place}").sample(sets, len(sets)))
    return Controls(
        sets=tuple(zip(*orders, strict=False)),
        layers=max(each.layers for each in drawn),
        possible=min(each.possible for each in drawn),
        of_each=True,
    )


def in_order(heads: Group, like: Sequence[Head], layers: int, seed: int) -> Group:
    """A drawn set as an order: in each place a head of the same block as that of `like`."""
    shuffled = random.Random(seed).sample(heads, len(heads))
    taken = []
    for place in like:
        block = place.layer // layers
        taken.append(next(head for head in shuffled if head.layer // layers == block))
        shuffled.remove(taken[-1])
    return tuple(taken)

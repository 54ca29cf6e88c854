"""Shapley values: what each player brings to a game, over all coalitions it may join."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from safehead_tl.errors import SafeheadError

Coalition: TypeAlias = tuple[bool, ...]
"""For each player whether it is in."""

EXACT = 12
"""Up to how many players all coalitions are looked at: 4096."""

PAIRS = 200
"""Pairs of permutations where players are more."""


@dataclass(frozen=True, eq=False)
class Shapley:
    """What each player brings, on average over all orders in which they may come.

    Attributes:
        values: one for each player; their sum is `everyone` - `nobody`.
        intervals: low and high ends of each value's 95 % interval, by itself and not for all at
            once; where all coalitions were looked at, the value itself.
        everyone: the game's value with all players in.
        nobody: its value with none.
        pairs: pairs of permutations that were drawn; `None`: all coalitions were looked at.
        coalitions: how many the game was played with.
    """

    values: Float[Tensor, " player"]
    intervals: Float[Tensor, "player 2"]
    everyone: float
    nobody: float
    pairs: int | None
    coalitions: int


class Remembered:
    """A game that is played once with each coalition, by `play`, which gives its value."""

    def __init__(self, play: Callable[[Coalition], float]):
        self._play = play
        self.seen: dict[Coalition, float] = {}

    def __call__(self, coalition: Coalition) -> float:
        """The value of a coalition."""
        if coalition not in self.seen:
            self.seen[coalition] = float(self._play(coalition))
        return self.seen[coalition]


def shapley(
    play: Callable[[Coalition], float],
    players: int,
    *,
    exact: int = EXACT,
    pairs: int = PAIRS,
    seed: int = 0,
) -> Shapley:
    """Shapley values of a game (Shapley 1953): over all orders, the mean of what a player adds.

    Summed over all coalitions where there are at most `exact` players. Else the mean over random
    orders (Castro, Gómez and Tejada 2009), each drawn together with its reverse: where players
    stand in for each other or need each other, the two err in opposite directions. The mean of a
    pair is one draw; intervals are Student's over the pairs. Either way values add up to what all
    bring.

    Args:
        play: gives a coalition's value; asked once for each. Coalitions come with the last players
            changing first.
        players: how many they are.
        exact: up to how many players all coalitions are looked at.
        pairs: orders drawn, in pairs; at least 2.
        seed: of the draws.

    Raises:
        SafeheadError: if fewer than 2 pairs would be drawn.
    """
    game = Remembered(play)
    everyone, nobody = game((True,) * players), game((False,) * players)
    if players <= exact:
        values = _over_coalitions(game, players)
        intervals = values[:, None].expand(-1, 2)
        return Shapley(values, intervals, everyone, nobody, None, len(game.seen))
    if pairs < 2:
        raise SafeheadError(f"pairs={pairs}: an interval needs 2 pairs of permutations or more")
    draws = torch.stack([*itertools.islice(_over_orders(game, players, seed), pairs)])
    values = draws.mean(0)
    reach = draws.std(0) / math.sqrt(pairs) * float(stdtrit(pairs - 1, 0.975))
    intervals = torch.stack([values - reach, values + reach], 1)
    return Shapley(values, intervals, everyone, nobody, pairs, len(game.seen))


def _over_coalitions(game: Remembered, players: int) -> Float[Tensor, " player"]:
    every = [*itertools.product((False, True), repeat=players)]
    found = torch.tensor([game(coalition) for coalition in every], dtype=torch.float64)
    inside = torch.tensor(every, dtype=torch.bool)
    sizes = inside.sum(1, keepdim=True) - inside.int()  # of a coalition without the player
    orders = torch.tensor(
        [1 / (players * math.comb(players - 1, size)) for size in range(players)],
        dtype=torch.float64,
    )
    weights = torch.where(inside, 1.0, -1.0) * orders[sizes]
    return found @ weights


def _over_orders(game: Remembered, players: int, seed: int) -> Iterator[Float[Tensor, " player"]]:
    """What each player adds, the mean of a random order and its reverse; without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(players, generator=generator).tolist()
        added = torch.zeros(players, dtype=torch.float64)
        for way in (order, order[::-1]):
            inside = [False] * players
            before = game(tuple(inside))
            for player in way:
                inside[player] = True
                after = game(tuple(inside))
                added[player] += (after - before) / 2
                before = after
        yield added

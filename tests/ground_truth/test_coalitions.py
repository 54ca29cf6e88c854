import itertools
import math

import pytest
import torch

import safehead_tl as sh
from safehead_tl.ground_truth import shapley


def airport(costs):
    """A runway as long as the largest plane in needs it."""
    return lambda some: max([cost * inside for cost, inside in zip(costs, some, strict=True)])


def additive(worth):
    return lambda some: sum(each * inside for each, inside in zip(worth, some, strict=True))


def gloves(some):
    """Pairs of the first player's left glove and the right ones of the others."""
    return float(some[0] and any(some[1:]))


GAMES = [
    (additive([1, -2, 0, 5]), 4, [1, -2, 0, 5]),
    # each stretch of the runway is shared by those that need it (Littlechild and Owen 1973)
    (airport([1.0, 2.0, 4.0]), 3, [1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 2]),
    (gloves, 3, [2 / 3, 1 / 6, 1 / 6]),
    (gloves, 4, [3 / 4, 1 / 12, 1 / 12, 1 / 12]),
    (lambda some: float(some[0] and some[2] and some[3]), 5, [1 / 3, 0, 1 / 3, 1 / 3, 0]),
    (lambda some: float(sum(some) > 2), 5, [1 / 5] * 5),
    (lambda some: 7.0, 2, [0, 0]),
    (lambda some: 7.0, 0, []),
]


@pytest.mark.parametrize(("game", "players", "expected"), GAMES)
def test_games_with_known_values(game, players, expected):
    found = shapley(game, players)
    assert found.values.tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(found.intervals, found.values[:, None].expand(-1, 2))
    assert (found.pairs, found.coalitions) == (None, 2**players)
    if players:
        drawn = shapley(game, players, exact=0, pairs=400)
        low, high = (drawn.intervals - torch.tensor(expected)[:, None]).T
        assert ((low <= 1e-9) & (high >= -1e-9)).all()
        assert drawn.pairs == 400


def random_game(players, seed):
    worth = torch.rand(2**players, generator=torch.Generator().manual_seed(seed)).tolist()
    return lambda some: worth[sum(inside << place for place, inside in enumerate(some))]


def over_all_orders(game, players):
    """By the definition: what each player adds, over every order."""
    added = [0.0] * players
    for order in itertools.permutations(range(players)):
        for place, player in enumerate(order):
            before = [other in order[:place] for other in range(players)]
            after = [other in order[: place + 1] for other in range(players)]
            added[player] += game(tuple(after)) - game(tuple(before))
    return [each / math.factorial(players) for each in added]


@pytest.mark.parametrize("players", [1, 2, 5])
def test_all_coalitions_give_the_mean_over_all_orders(players):
    game = random_game(players, players)
    found = shapley(game, players)
    assert found.values.tolist() == pytest.approx(over_all_orders(game, players))


def test_values_add_up_to_what_all_bring_however_few_the_orders():
    for exact, pairs in ((12, 2), (0, 2), (0, 7)):
        found = shapley(random_game(6, 1), 6, exact=exact, pairs=pairs)
        assert float(found.values.sum()) == pytest.approx(found.everyone - found.nobody)


def test_a_pair_is_an_order_and_its_reverse():
    """Of a game of two at a time, one pair of any order has the exact values."""
    worth = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).tolist()

    def twos(some):
        inside = [player for player in range(5) if some[player]]
        return sum(worth[a][b] for a in inside for b in inside)

    drawn = shapley(twos, 5, exact=0, pairs=2)
    assert drawn.values.tolist() == pytest.approx(shapley(twos, 5).values.tolist())
    assert drawn.intervals[:, 1].tolist() == pytest.approx(drawn.intervals[:, 0].tolist())


def test_intervals_hold_the_value_as_often_as_they_say():
    game, players, runs = random_game(6, 3), 6, 200
    expected = shapley(game, players).values
    held = torch.zeros(players)
    for seed in range(runs):
        low, high = shapley(game, players, exact=0, pairs=15, seed=seed).intervals.T
        held += (low <= expected) & (expected <= high)
    assert 0.92 < float(held.mean() / runs) < 0.98
    assert float(held.min() / runs) > 0.88


def test_a_coalition_is_asked_for_once_and_the_last_player_changes_first():
    asked = []
    game = random_game(3, 0)

    def play(some):
        asked.append(some)
        return game(some)

    assert shapley(play, 3).coalitions == len(asked) == len(set(asked)) == 8
    rest = ["001", "010", "011", "100", "101", "110"]
    assert ["".join(map(str, map(int, some))) for some in asked[2:]] == rest


def test_one_pair_is_too_few():
    with pytest.raises(sh.SafeheadError, match="pairs=1: an interval needs 2"):
        shapley(gloves, 3, exact=2, pairs=1)

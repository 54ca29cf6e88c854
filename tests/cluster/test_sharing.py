"""Replicas that share pieces, simulated: against what can be said without a simulation."""

import statistics

import pytest

import safehead_tl as sh
from safehead_tl.cluster import PIECES_EACH, Trouble, share

PIECES = [60.0 * layer / 40.5 for layer in range(80, 0, -1) for _ in range(8)]


@pytest.mark.parametrize("replicas", [1, 2, 7, 64, 700])
def test_without_trouble_a_run_is_no_longer_than_any_such_order_can_make_it(replicas):
    """Graham's bound: nobody is idle while a piece is left."""
    found = share(PIECES, replicas)
    least = max(max(PIECES), sum(PIECES) / replicas)
    assert least - 1e-6 <= found.seconds <= sum(PIECES) / replicas + max(PIECES)
    assert found.working == pytest.approx(sum(PIECES))
    assert found.lost == 0
    assert found.idle == pytest.approx(replicas * found.seconds - sum(PIECES))


def test_a_start_is_paid_by_each_replica():
    alone, together = (share([10.0] * 8, replicas, start=5.0) for replicas in (1, 4))
    assert (alone.seconds, together.seconds) == (85.0, 25.0)
    assert together.starting == 20
    assert together.waiting == 0


def test_a_dead_replicas_piece_is_taken_over_when_its_lease_has_expired():
    told = Trouble(slow=0.0, dies=0.5, expiry=30.0)
    seldom = [share([10.0], 1, trouble=told, seed=seed) for seed in range(9)]
    died = [found for found in seldom if found.lost]
    assert 0 < len(died) < 9
    # it dies within 10 s, then the lease has to expire, and then it takes 10 s
    assert all(found.deaths * 30 + 10 < found.seconds < found.deaths * 40 + 10 for found in died)
    assert all(found.seconds == 10 for found in seldom if not found.lost)


def test_every_piece_is_done_once_whatever_happens():
    trouble = Trouble(slow=0.0, dies=0.3, expiry=5.0)
    found = share(PIECES, 16, start=20.0, trouble=trouble, seed=1)
    assert found.deaths > 50
    assert found.working == pytest.approx(sum(PIECES))


def test_with_enough_pieces_little_is_lost_to_stragglers_and_deaths():
    """64 replicas; the table of benchmarks/cluster_simulation.py has more of them."""

    def lost(each):
        pieces = [120.0 * (64 * each - at) / (32 * each) for at in range(64 * each)]
        told = {"start": 120.0, "trouble": Trouble()}
        return statistics.fmean(share(pieces, 64, **told, seed=seed).waiting for seed in range(5))

    assert lost(PIECES_EACH) < 0.1
    assert lost(8) > 0.15


def test_what_makes_no_run_is_refused():
    for pieces, replicas in (([], 2), ([1.0], 0)):
        with pytest.raises(sh.SafeheadError, match="at least one of each"):
            share(pieces, replicas)

"""Leases: one process is at a piece, a dead one is taken over, and clocks are not compared."""

import multiprocessing
import os
import threading
import time

import pytest

from safehead_tl.scan import leases
from safehead_tl.scan.leases import Leases


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY", 0.3)


def test_one_holds_it_until_the_end(tmp_path):
    one, two = Leases(tmp_path / "pieces", "one"), Leases(tmp_path / "pieces", "two")
    with one.held("a") as ours, two.held("a") as theirs, two.held("b") as other:
        assert (ours, theirs, other) == (True, False, True)
    with two.held("a") as ours:
        assert ours
    assert not list((tmp_path / "pieces").iterdir())


def test_an_error_gives_it_back(tmp_path):
    with pytest.raises(KeyboardInterrupt), Leases(tmp_path, "one").held("a"):
        raise KeyboardInterrupt
    with Leases(tmp_path, "two").held("a") as ours:
        assert ours


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_a_dead_owner_is_taken_over_whatever_its_clock_said(tmp_path, brief, caplog, skew):
    file = tmp_path / "a.0.lease"
    file.write_text("shard 1/2")
    os.utime(file, (time.time() + skew,) * 2)
    two = Leases(tmp_path, "two")
    with two.held("a") as ours:
        assert not ours  # seen for the first time
    time.sleep(0.4)
    with two.held("a") as ours, Leases(tmp_path, "three").held("a") as theirs:
        assert (ours, theirs) == (True, False)
    assert "a: taken over from shard 1/2" in caplog.text


def test_a_live_owner_is_not(tmp_path, brief):
    two = Leases(tmp_path, "two")
    with Leases(tmp_path, "one").held("a"):
        until = time.monotonic() + 1.2  # four times as long as a lease that nobody renews
        while time.monotonic() < until:
            with two.held("a") as ours:
                assert not ours
            time.sleep(0.02)


def test_who_stood_still_and_wakes_up_takes_nothing_away(tmp_path, brief, monkeypatch):
    one, two, three = (Leases(tmp_path, name) for name in ("one", "two", "three"))
    monkeypatch.setattr(leases, "_renew", lambda file, over: None)
    with one.held("a"):
        two._expired(tmp_path / "a.0.lease")
        time.sleep(0.4)
        taken = two.held("a")
        assert taken.__enter__()
    with one.held("a") as again, three.held("a") as others:
        assert (again, others) == (False, False)
    taken.__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_what_a_dead_owner_held_is_freed_by_name(tmp_path):
    for name, owner in {"a": "shard 1/2, process 7", "b": "shard 2/2", "c": "shard 1/20"}.items():
        (tmp_path / f"{name}.0.lease").write_text(owner)
    Leases(tmp_path, "").free("shard 1/2,")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.0.lease", "c.0.lease"]


def test_threads_and_processes_never_hold_one_at_once(tmp_path):
    """Whoever holds a piece makes a file of its name, which must not be there."""
    spawn = multiprocessing.get_context("spawn")
    start, failed = spawn.Event(), spawn.Queue()
    team = [spawn.Process(target=_alone, args=(tmp_path, start, failed)) for _ in range(2)]
    for one in team:
        one.start()
    start.set()
    for one in team:
        one.join(60)
        assert one.exitcode == 0
    assert failed.empty()


def _alone(folder, start, failed):
    leases = Leases(folder / "pieces", str(os.getpid()))
    start.wait(60)

    def work():
        for number in range(150):
            with leases.held(f"piece-{number % 5}") as ours:
                if ours:
                    here = folder / f"at-{number % 5}"
                    try:
                        here.touch(exist_ok=False)
                    except FileExistsError:
                        failed.put(number)
                    else:
                        time.sleep(0.001)
                        here.unlink()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

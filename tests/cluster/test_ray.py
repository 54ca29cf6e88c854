"""Replicas on a Ray cluster of this machine: the bytes of one process, whoever dies."""

import statistics
import threading
import time

import psutil
import pytest
import ray
import torch

import safehead_tl as sh
from safehead_tl.cluster.ray import Replica


@pytest.fixture(scope="module")
def cluster():
    """One for all tests, which `sh.Ray` finds and leaves as it is."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def harmful_few():
    return sh.load_prompts("demo/harmful", limit=6)


def test_replicas_give_the_bytes_of_one_process_and_tell_how_far_they_are(
    cluster, demo, harmful_few, tmp_path
):
    told = []
    run = sh.Run(on=sh.Ray(2), max_rows=2, progress=lambda *at: told.append(at))
    for measure in (sh.ships, sh.sahara):
        found = measure(demo, harmful_few, run=run)
        alone = measure(demo, harmful_few, run=sh.Run(max_rows=2, progress=False))
        for one, other in zip(
            getattr(found, "steps", [found]), getattr(alone, "steps", [alone]), strict=True
        ):
            torch.testing.assert_close(one.values, other.values, rtol=0, atol=0, equal_nan=True)
    assert all(0 < done <= total for _, done, total in told)


def test_a_replica_that_dies_is_replaced(cluster, demo, harmful_few, tmp_path):
    run = sh.Run(on=sh.Ray(2), run_dir=tmp_path / "run", max_rows=1, progress=False)
    killed = []

    def kill():
        while not list(tmp_path.glob("run/pieces/*.safetensors")):
            time.sleep(0.01)
        victim = next(
            one for one in psutil.process_iter() if f"ray::{Replica.__name__}" in one.cmdline()[:1]
        )
        victim.kill()
        killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    found = sh.sahara(demo, harmful_few, run=run)
    killer.join()
    assert killed
    alone = sh.sahara(demo, harmful_few, run=sh.Run(max_rows=1, progress=False))
    assert found.heads == alone.heads
    for one, other in zip(found.steps, alone.steps, strict=True):
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=0, equal_nan=True)
    assert not list(tmp_path.glob("run/**/*.lease"))


def test_an_error_of_a_replica_is_the_error_here(cluster, demo, harmful_few):
    with pytest.raises(sh.SafeheadError, match="L9H0"):
        sh.ships(demo, harmful_few, candidates=["L9H0"], run=sh.Run(on=sh.Ray(1)))


def test_a_model_that_was_changed_is_refused(cluster, harmful_few):
    model = sh.load_model("demo")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(sh.SafeheadError, match=r"'demo' has other weights than the model here"):
        sh.ships(model, harmful_few, run=sh.Run(on=sh.Ray(1), progress=False))


def test_a_function_of_many_arguments_is_given_to_replicas(cluster):
    """As the benchmark gives its subjects."""
    given = [([1, 3],), ([5, 5],), ([0, 2],)]
    assert sorted(sh.Ray(2).each(statistics.fmean, given)) == [1, 2, 5]
    with pytest.raises(statistics.StatisticsError):
        list(sh.Ray(1).each(statistics.fmean, [([],)]))


def test_a_cluster_that_is_too_small_is_refused(cluster, demo, harmful_few):
    with pytest.raises(sh.SafeheadError, match=r"3 replicas need 3 CPUs, and the cluster has 2"):
        sh.ships(demo, harmful_few, run=sh.Run(on=sh.Ray(3)))
    with pytest.raises(sh.SafeheadError, match=r"1 replicas need 1 GPUs, and the cluster has 0"):
        sh.ships(demo, harmful_few, run=sh.Run(on=sh.Ray(1, gpus=1)))


def test_what_replicas_cannot_share_is_refused(demo, harmful_few):
    other = sh.Run(on=sh.Ray(2, address="10.0.0.1:6379"))
    with pytest.raises(sh.SafeheadError, match="give run_dir on a disk that all see"):
        sh.ships(demo, harmful_few, run=other)
    with pytest.raises(sh.SafeheadError, match=r"this runs here, and not on Ray"):
        sh.last_states(demo, harmful_few, ["L1H3"], run=sh.Run(on=sh.Ray(2)))
    with pytest.raises(sh.SafeheadError, match=r"replicas=0: give a number from 1"):
        sh.Ray(0)

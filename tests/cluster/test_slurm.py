"""Shards as jobs, by submitit's executor for one machine."""

import copy
import gc
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import safehead_tl as sh
from safehead_tl.cluster import slurm
from safehead_tl.cluster.job import Job
from safehead_tl.cluster.slurm import _first, _Shard


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_give_the_bytes_of_one_process(demo, tmp_path):
    prompts = sh.load_prompts("demo/harmful", limit=6)
    run = sh.Run(run_dir=tmp_path / "run", max_rows=4, progress=False)
    found = sh.ships(demo, prompts, run=replace(run, on=sh.Slurm(2, cluster="local")))
    alone = sh.ships(demo, prompts, run=sh.Run(max_rows=4, progress=False))
    assert torch.equal(found.per_prompt, alone.per_prompt)
    again = sh.ships(demo, prompts, run=run)
    assert torch.equal(again.per_prompt, alone.per_prompt)
    gc.collect()  # submitit leaves its processes to themselves, which Python warns of


def test_the_array_that_is_submitted(demo, tmp_path, monkeypatch):
    """What submitit hands to sbatch, which here only answers with a number."""
    for name, answer in {"sbatch": "Submitted batch job 77", "srun": ""}.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\necho '{answer}'\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(
        slurm, "_first", lambda jobs, run_dir, progress: [one.job_id for one in jobs]
    )
    on = sh.Slurm(32, "gpu", gpus=2, cpus=8, time="4:00:30", options={"account": "mine"})
    run = sh.Run(run_dir=tmp_path / "run", on=on, progress=False)
    jobs = sh.ships(demo, "demo/harmful", run=run)
    assert (len(jobs), jobs[0], jobs[-1]) == (32, "77_0", "77_31")
    file = tmp_path / "run" / ".slurm" / "77_submission.sh"
    told = set(re.findall(r"#SBATCH --(.*)", file.read_text()))
    wanted = {"array=0-31%32", "partition=gpu", "account=mine", "requeue", "time=241"}
    assert wanted | {"cpus-per-task=8", "gpus-per-node=2"} <= told


def test_a_preempted_job_is_submitted_again(demo):
    """What submitit calls before it queues a job again: the same job, of the same shard."""
    told = {"model": demo, "prompts": "demo/harmful", "run": sh.Run(run_dir="run")}
    shard = _Shard(Job.of(sh.ships, told, 4), 1)
    again = shard.checkpoint(3)
    assert (again.function, again.args) == (shard, (3,))


def test_the_first_that_finishes_is_enough_and_the_others_are_cancelled(tmp_path):
    cancelled = []

    def job(done, error=None):
        return SimpleNamespace(
            job_id="7_0",
            done=lambda: done,
            exception=lambda: error,
            result=lambda: "whole",
            cancel=lambda: cancelled.append(done),
        )

    jobs = [job(True, RuntimeError("node down")), job(True), job(False)]
    assert _first(jobs, tmp_path, False) == "whole"
    assert cancelled == [False]
    with pytest.raises(sh.SafeheadError, match=re.escape("all 1 jobs failed")):
        _first(jobs[:1], tmp_path, False)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"shards": 0}, "shards=0: give a number from 1"),
        ({"shards": 2, "time": "soon"}, "time='soon': give minutes, or hours:minutes:seconds"),
        ({"shards": 2, "time": "4:00"}, "time='4:00': give minutes"),
    ],
)
def test_what_is_no_array(told, message):
    with pytest.raises(sh.SafeheadError, match=re.escape(message)):
        sh.Slurm(**told)


def test_jobs_need_a_directory(demo):
    with pytest.raises(sh.SafeheadError, match="give run_dir on a disk that all see"):
        sh.ships(demo, "demo/harmful", run=sh.Run(on=sh.Slurm(2, cluster="local")))


def test_a_model_made_in_memory_is_refused(demo, tmp_path):
    run = sh.Run(run_dir=tmp_path / "run", on=sh.Slurm(2, cluster="local"))
    with pytest.raises(sh.SafeheadError, match="which was made in memory: save it"):
        sh.ships(copy.deepcopy(demo), "demo/harmful", run=run)

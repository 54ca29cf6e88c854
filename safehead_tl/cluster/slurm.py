"""Shards as an array of Slurm jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tqdm.auto import tqdm
from typing_extensions import override

from safehead_tl.cluster.job import Job, shared
from safehead_tl.errors import SafeheadError
from safehead_tl.models import no_bars
from safehead_tl.scan import Cluster

LOOK = 1.0
"""Seconds between two looks at the queue."""


@dataclass(frozen=True)
class Slurm(Cluster):
    """Runs as an array of Slurm jobs (`pip install 'safehead-tl[slurm]'`).

    `run=sh.Run(on=sh.Slurm(shards=32, partition="gpu", time="4:00:00"), run_dir=...)`, for the
    functions that `sh.Ray` is for. Each job is a shard of the run. It begins when the queue lets
    it, and is queued again when it is preempted or its time is over; what it had finished is kept,
    and what it had begun is taken over. This process waits, and cancels the jobs that are left when
    all pieces are there. If it is stopped, the jobs go on, and the same call with `on=None` reads
    what they have kept.

    Attributes:
        shards: how many jobs.
        partition: of the cluster; by default Slurm's own.
        gpus: of each job.
        cpus: of each job, and its threads.
        time: of each job, in minutes or as `"hours:minutes:seconds"`.
        options: what else `sbatch` is told, such as `{"account": "mine", "mem": "64G"}`.
        cluster: `"slurm"`, or `"local"`: processes on this machine, to try it.

    Raises:
        SafeheadError: if submitit or a `run_dir` is missing, the model was made or changed in
            memory, or all jobs failed.
    """

    shards: int
    partition: str | None = None
    gpus: int = 1
    cpus: int = 1
    time: int | str = 60
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        if not isinstance(self.shards, int) or isinstance(self.shards, bool) or self.shards < 1:
            raise SafeheadError(f"shards={self.shards!r}: give a number from 1")
        _ = self.minutes

    @property
    def minutes(self) -> int:
        """The time of each job."""
        parts = [part for part in str(self.time).split(":") if part.isdigit()]
        if ":".join(parts) != str(self.time) or len(parts) not in (1, 3):
            raise SafeheadError(f"time={self.time!r}: give minutes, or hours:minutes:seconds")
        if len(parts) == 1:
            return int(parts[0])
        hours, minutes, seconds = map(int, parts)
        return 60 * hours + minutes + (seconds > 0)

    @override
    def call(self, function: Callable[..., Any], told: Mapping[str, Any]) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise SafeheadError("submitit is not here: pip install 'safehead-tl[slurm]'") from error
        progress = told["run"].progress
        job = Job.of(function, told, self.shards)
        with shared(job, one_machine=False) as job:
            run_dir = Path(job.run.run_dir or "")
            executor = submitit.AutoExecutor(run_dir / ".slurm", cluster=self.cluster)
            executor.update_parameters(**self._parameters())
            numbers = range(1, self.shards + 1)
            jobs = executor.map_array(_Shard(job, self.cpus), numbers)
            return _first(jobs, run_dir, progress)

    def _parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = {"timeout_min": self.minutes, "name": "safehead"}
        if self.cluster == "slurm":
            found |= {
                "cpus_per_task": self.cpus,
                "gpus_per_node": self.gpus,
                "slurm_array_parallelism": self.shards,
                "slurm_additional_parameters": {"requeue": True, **self.options},
            }
            if self.partition is not None:
                found["slurm_partition"] = self.partition
        return found


@dataclass(frozen=True)
class _Shard:
    """What a job of the array does; submitit submits it again when it is preempted."""

    job: Job
    threads: int

    def __call__(self, number: int) -> Any:
        import torch

        torch.set_num_threads(self.threads)
        return self.job.shard(self.job.model(), number)

    def checkpoint(self, number: int) -> Any:
        """What is submitted when this job is preempted or its time is over: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, number)


def _first(jobs: list[Any], run_dir: Path, progress: Any) -> Any:
    """What the first job has that sees all pieces there; the others are cancelled."""
    label = f"{len(jobs)} jobs, {jobs[0].job_id} and so on: pieces"
    try:
        with tqdm(desc=label, unit="piece", disable=no_bars(progress)) as bar:
            while True:
                done = [job for job in jobs if job.done()]
                bar.update(len(list(run_dir.glob("**/pieces/*.safetensors"))) - bar.n)
                good = [job for job in done if job.exception() is None]
                if good:
                    return good[0].result()
                if len(done) == len(jobs):
                    raise SafeheadError(
                        f"all {len(jobs)} jobs failed; their logs are in {run_dir / '.slurm'}. The "
                        f"first said: {jobs[0].exception()}"
                    )
                time.sleep(LOOK)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()

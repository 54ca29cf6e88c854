"""Replicas on a Ray cluster, each an actor that loads the model once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from typing_extensions import override

from safehead_tl.cluster.job import Job, shared
from safehead_tl.errors import SafeheadError
from safehead_tl.models import no_bars
from safehead_tl.scan import Cluster, Leases

LOSSES = 3
"""How often a replica is replaced, one after the other, before it has done anything."""

LOOK = 0.5
"""Seconds between two looks at how far the replicas are."""


@dataclass(frozen=True)
class Ray(Cluster):
    """Runs on a Ray cluster (`pip install 'safehead-tl[ray]'`): `run=sh.Run(on=sh.Ray(2))`.

    For every function that keeps pieces (`ships`, `sahara`, `interchange`, `evaluate`,
    `concentration`, `asr_map` and the others that take a `run_dir`), and as `processes=` of
    the ground-truth benchmark. Each replica loads the model by its name or directory, and they
    share the run's pieces; one that dies is replaced. With a `run_dir` a run whose whole cluster
    was lost goes on where it was. Scores are those of one process on the same kind of device.

    Attributes:
        replicas: how many processes.
        address: of a running cluster, such as `"auto"`; by default a cluster on this machine is
            started, and stopped at the end. A cluster of several machines needs a `run_dir` on a
            disk that all see.
        gpus: of each replica; by default 1 where the cluster has any. With more than one, load the
            model with `device_map="auto"`.
        cpus: of each replica, and its threads.

    Raises:
        SafeheadError: if Ray is missing or the cluster too small, the model was made or changed in
            memory, the run needs a directory, or replicas die without having done anything.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> run = sh.Run(on=sh.Ray(replicas=2), run_dir="run-2", progress=False)
        >>> scores = sh.ships(model, prompts, run=run)  # doctest: +SKIP
    """

    replicas: int
    address: str | None = None
    gpus: int | float | None = None
    cpus: int = 1

    def __post_init__(self) -> None:
        for name in ("replicas", "cpus"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SafeheadError(f"{name}={value!r}: give a number from 1")

    @override
    def call(self, function: Callable[..., Any], told: Mapping[str, Any]) -> Any:
        progress = told["run"].progress
        job = Job.of(function, told, self.replicas)
        with shared(job, one_machine=self.address is None) as job, self._connected() as ray:
            return _Crew(ray, job, self._options(ray), progress).result()

    @override
    def each(self, function: Callable[..., Any], given: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        with self._connected() as ray:
            task = ray.remote(function).options(**self._options(ray), max_retries=LOSSES)
            left = [task.remote(*one) for one in given]
            try:
                while left:
                    [first], left = ray.wait(left)
                    yield _unwrapped(ray, first)
            finally:
                for one in left:
                    ray.cancel(one, force=True)

    def _options(self, ray: Any) -> dict[str, Any]:
        """What Ray is told of a replica: without `num_cpus` it would give each one thread."""
        there = ray.cluster_resources()
        gpus = self.gpus if self.gpus is not None else min(1, there.get("GPU", 0))
        for kind, needed in (("CPU", self.cpus), ("GPU", gpus)):
            if needed * self.replicas > there.get(kind, 0):
                raise SafeheadError(
                    f"{self.replicas} replicas need {needed * self.replicas:g} {kind}s, and the "
                    f"cluster has {there.get(kind, 0):g}: use fewer replicas, or fewer "
                    f"{kind.lower()}s for each"
                )
        return {"num_cpus": self.cpus, "num_gpus": gpus}

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Ray, connected to the cluster; what is started here is stopped at the end."""
        try:
            import ray
        except ImportError as error:
            raise SafeheadError("Ray is not here: pip install 'safehead-tl[ray]'") from error
        if ray.is_initialized():
            yield ray
            return
        before = signal.getsignal(signal.SIGTERM)
        told: dict[str, Any] = {} if self.address else {"num_cpus": self.replicas * self.cpus}
        try:
            ray.init(self.address, include_dashboard=None if self.address else False, **told)
        except Exception as error:  # of many kinds
            where = (
                f"there is no Ray cluster at {self.address!r}"
                if self.address
                else "Ray did not start"
            )
            raise SafeheadError(f"{where}: {error}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # which Ray replaces
        try:
            yield ray
        finally:
            ray.shutdown()


class Replica:
    """An actor: a process that has the model and is one shard of the run."""

    def __init__(self, job: Job):
        self._job = job
        self._at: tuple[str, int, int] | None = None

    def work(self, number: int) -> Any:
        """The whole result, when all pieces are there.

        Args:
            number: which shard this is, from 1.
        """
        return self._job.shard(self._job.model(), number, self._tell)

    def at(self) -> tuple[str, int, int] | None:
        """What is done at the moment, how much of it, and of how much; nothing at first."""
        return self._at

    def _tell(self, label: str, done: int, total: int) -> None:
        self._at = label, done, total


class _Crew:
    """The replicas of one run, seen from where it was started."""

    def __init__(self, ray: Any, job: Job, options: Mapping[str, Any], progress: Any):
        self._ray = ray
        self._job = job
        self._options = options
        self._progress = progress
        self._actors: dict[Any, tuple[int, Any]] = {}
        self._losses = dict.fromkeys(range(1, job.shards + 1), 0)

    def result(self) -> Any:
        """What the first replica has that sees all pieces there."""
        try:
            for number in self._losses:
                self._start(number)
            with _Shown(self._progress) as shown:
                while True:
                    done, _ = self._ray.wait(list(self._actors), timeout=LOOK)
                    if not done:
                        self._look(shown)
                        continue
                    number, _ = self._actors.pop(done[0])
                    try:
                        return _unwrapped(self._ray, done[0])
                    except self._ray.exceptions.RayActorError as error:
                        self._replace(number, error)
        finally:
            for _, actor in self._actors.values():
                self._ray.kill(actor)

    def _start(self, number: int) -> None:
        told = {**self._options, "max_concurrency": 2}  # at work, and asked how far it is
        actor = self._ray.remote(Replica).options(**told).remote(self._job)
        self._actors[actor.work.remote(number)] = number, actor

    def _replace(self, number: int, error: Exception) -> None:
        """Starts another in a dead replica's place, which may take its piece at once."""
        self._losses[number] += 1
        if self._losses[number] > LOSSES:
            raise SafeheadError(
                f"replica {number} died {self._losses[number]} times before it had done anything, "
                f"at last with: {error}. With the same run_dir the run goes on where it was"
            ) from error
        assert self._job.run.run_dir is not None
        for folder in Path(self._job.run.run_dir).glob("**/pieces"):
            Leases(folder, "").free(f"shard {number}/{self._job.shards},")
        self._start(number)

    def _look(self, shown: _Shown) -> None:
        """Shows how far the run is: each replica sees the pieces of all."""
        for number, actor in self._actors.values():
            try:
                at = self._ray.get(actor.at.remote(), timeout=LOOK)
            except (self._ray.exceptions.GetTimeoutError, self._ray.exceptions.RayActorError):
                continue  # it is being started, or is gone
            if at is not None:
                self._losses[number] = 0
                shown.tell(*at)
                return


class _Shown:
    """One progress bar, or who is told instead."""

    def __init__(self, progress: Any):
        self._progress = progress
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._bar is not None:
            if error is None:
                self._bar.n = self._bar.total or 0  # the last look was before the end
            self._bar.close()

    def tell(self, label: str, done: int, total: int) -> None:
        """Shows what is done, how much of it, and of how much."""
        if callable(self._progress):
            self._progress(label, done, total)
        elif not no_bars(self._progress):
            if self._bar is None:
                self._bar = tqdm(total=total)
            self._bar.set_description(label, refresh=False)
            self._bar.total, self._bar.n = total, done
            self._bar.refresh()


def _unwrapped(ray: Any, future: Any) -> Any:
    """A result, or the error that the other process had, as it would be here."""
    try:
        return ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error

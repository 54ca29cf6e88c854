"""What every process of a cluster is given: a function, its arguments, and how to load a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safehead_tl.errors import SafeheadError
from safehead_tl.models import Loading, Model, describe
from safehead_tl.scan import Run

Tell = Callable[[str, int, int], object]
"""Told what is done, how much of it, and of how much."""


@dataclass(frozen=True)
class Job:
    """A run of several processes.

    Attributes:
        function: what each of them calls.
        told: its arguments, but for `model` and `run`.
        loading: how each of them loads the model.
        weights_hash: what its weights must be, if it was loaded where the run was started.
        run: how it runs.
        shards: how many processes there are.
    """

    function: Callable[..., Any]
    told: Mapping[str, Any]
    loading: Loading
    weights_hash: str | None
    run: Run
    shards: int

    @classmethod
    def of(cls, function: Callable[..., Any], told: Mapping[str, Any], shards: int) -> Job:
        """The job that a function's arguments make.

        Args:
            function: the function.
            told: its arguments. A model that is a `Loading` was not loaded here.
            shards: how many processes there will be.
        """
        rest = dict(told)
        model, run = rest.pop("model"), rest.pop("run")
        loaded = not isinstance(model, Loading)
        return cls(
            function=function,
            told=rest,
            loading=Loading.of(model) if loaded else model,
            weights_hash=describe(model)["weights_hash"] if loaded else None,
            run=replace(run, on=None, progress=False),
            shards=shards,
        )

    def model(self) -> Model:
        """The model.

        Raises:
            SafeheadError: if it has other weights than where the run was started.
        """
        model = self.loading.load()
        if self.weights_hash not in (None, describe(model)["weights_hash"]):
            raise SafeheadError(
                f"{self.loading.source!r} has other weights than the model here, which was changed "
                "after it was loaded: save what you changed as a Hugging Face directory, and load "
                "it from there"
            )
        return model

    def shard(self, model: Model, number: int, tell: Tell | bool = False) -> Any:
        """The result, with the help of the other shards.

        Args:
            model: the model.
            number: which shard this is, from 1.
            tell: is told how far the run is.
        """
        how = replace(self.run, on=f"{number}/{self.shards}", progress=tell)
        return self.function(model=model, run=how, **self.told)


@contextmanager
def shared(job: Job, *, one_machine: bool) -> Iterator[Job]:
    """The job, with a directory to share.

    Args:
        job: the job.
        one_machine: all its processes see this machine's temporary files.

    Raises:
        SafeheadError: if it has no directory, and other machines would not see one made here.
    """
    if job.run.run_dir is not None:
        absolute = Path(job.run.run_dir).expanduser().resolve()
        yield replace(job, run=replace(job.run, run_dir=absolute))
    elif not one_machine:
        raise SafeheadError(
            "machines share a run through its directory: give run_dir on a disk that all see"
        )
    else:
        with tempfile.TemporaryDirectory(prefix="safehead-run-") as folder:
            yield replace(job, run=replace(job.run, run_dir=Path(folder) / "run"))

"""How a run runs: what it may take, what it keeps, what it shows. What it *is* stands elsewhere."""

from __future__ import annotations

import inspect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

from safehead_tl.errors import SafeheadError
from safehead_tl.writing import as_json, write_file

RESULT = "result.json"
"""In a run directory: the whole result, as a command writes it with `--json`."""


class Elsewhere:
    """Where a run may run, if not in this process: `sh.Ray`, `sh.Slurm`, `sh.Server`.

    Attributes:
        answers_only: whether it answers prompts and can do nothing else.
    """

    answers_only: ClassVar[bool] = False


class Cluster(Elsewhere, ABC):
    """Starts processes that share a run."""

    @abstractmethod
    def call(self, function: Callable[..., Any], told: Mapping[str, Any]) -> Any:
        """The result of a function that keeps pieces.

        Args:
            function: what is to be run, a function of a package.
            told: all its arguments, by name, among them `model` and `run`.
        """

    def each(self, function: Callable[..., Any], given: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """What a function gives for each of some arguments, in the order in which it is there.

        Args:
            function: a function of a package, which another process may call again.
            given: its arguments, each time.
        """
        raise SafeheadError(f"this does not run on {type(self).__name__}: use sh.Ray, or processes")


@dataclass(frozen=True, repr=False)
class Run:
    """How a run runs. It changes what is found in the last digits at most.

    Whatever takes `run=` heeds what of it applies there, and refuses a directory that it would not
    fill: scans, `evaluate`, `concentration`, `generate`, `last_states`, `helpfulness`, `report` and
    `explore`.

    Attributes:
        max_bytes: memory to use beyond the model's weights, in bytes or such as `"2GiB"`; `None`:
            four fifths of what is free on a GPU, elsewhere at most 1 GiB.
        max_rows: most (head, prompt) pairs or texts in one pass; `None`: as many as are fast and
            fit. If memory runs out all the same, passes are halved.
        shared_prefix: in scans, run tokens that all prompts begin with once for each head, where
            that saves work.
        run_dir: a directory that keeps finished pieces. Started again with the same arguments, a
            run that was stopped or killed goes on there; a different one is refused.
        on: where it runs. `"2/8"`: this process is the second of eight that share the pieces of one
            `run_dir`, each with the same arguments; all of them wait for the last piece, and have
            the whole result. `"auto"`: which one it is, torchrun or Slurm say. `sh.Ray(...)` and
            `sh.Slurm(...)` start such processes; `sh.Server(...)` asks a server for answers.
            `None`: this process alone.
        progress: show progress bars; or a function that is told instead what is done, how much of
            it, and of how much: `progress("ships, 20 prompts", 8, 32)`.

    Raises:
        SafeheadError: for memory that is no amount, rows that are no number from 1, or a shard
            that is none or has no `run_dir`.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> run = sh.Run(max_bytes="64MiB", run_dir="run-1", progress=False)
        >>> scores = sh.ships(model, prompts, run=run)
        >>> again = sh.ships(model, prompts, run=run)  # read from run-1
        >>> bool((again.values == scores.values).all())
        True
    """

    max_bytes: int | str | None = None
    max_rows: int | None = None
    shared_prefix: bool = True
    run_dir: str | Path | None = None
    on: str | Elsewhere | None = None
    progress: bool | Callable[[str, int, int], object] = True

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            parse_bytes(self.max_bytes)
        rows = self.max_rows
        if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
            raise SafeheadError(f"max_rows={rows!r} leaves no room for a prompt: give at least 1")
        if isinstance(self.on, str):
            _ = self.shard

    def __repr__(self) -> str:
        told = [(field.name, getattr(self, field.name)) for field in fields(self)]
        changed = (f"{name}={value!r}" for name, value in told if value != getattr(Run, name))
        return f"Run({', '.join(changed)})"

    @property
    def shard(self) -> tuple[int, int]:
        """Which one this process is, from 0, and of how many."""
        if not isinstance(self.on, str):
            return 0, 1
        on = _of_launcher() if self.on == "auto" else self.on
        found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", on)
        if not found or int(found[1]) > int(found[2]):
            raise SafeheadError(f"on={self.on!r} is no shard: write the second of eight as '2/8'")
        if self.run_dir is None:
            raise SafeheadError(f"on={self.on!r} shares a run directory: give run_dir as well")
        return int(found[1]) - 1, int(found[2])

    @property
    def memory(self) -> dict[str, Any]:
        """What it was told of memory, which may differ from one sitting to the next."""
        return {"max_rows": self.max_rows, "max_bytes": self.max_bytes}


def _of_launcher() -> str:
    """Which shard this process is by what started it: torchrun, a Slurm array, or srun."""
    told = os.environ
    if "WORLD_SIZE" in told:
        number, of = int(told["RANK"]), int(told["WORLD_SIZE"])
    elif "SLURM_ARRAY_TASK_COUNT" in told:
        first, step = told["SLURM_ARRAY_TASK_MIN"], told.get("SLURM_ARRAY_TASK_STEP", "1")
        number = (int(told["SLURM_ARRAY_TASK_ID"]) - int(first)) // int(step)
        of = int(told["SLURM_ARRAY_TASK_COUNT"])
    elif "SLURM_NTASKS" in told:
        number, of = int(told["SLURM_PROCID"]), int(told["SLURM_NTASKS"])
    else:
        raise SafeheadError(
            "on='auto' goes by the environment of torchrun or Slurm, which is not here: say which "
            "shard this is, such as '2/8'"
        )
    return f"{number + 1}/{of}"


P = ParamSpec("P")
R = TypeVar("R")


def anywhere(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function of a model that keeps pieces run on the cluster that `run=` names.

    Its result is kept beside its pieces, for who does not have the model.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def wherever(*args: P.args, **kwargs: P.kwargs) -> R:
        run = kwargs.get("run")
        if isinstance(run, Run) and isinstance(run.on, Cluster):
            found: R = run.on.call(wherever, signature.bind(*args, **kwargs).arguments)
        else:
            found = function(*args, **kwargs)
            if isinstance(run, Run) and run.run_dir is not None:
                file = Path(run.run_dir) / RESULT
                write_file(file, as_json(found).encode(), overwrite=True)
        return found

    return wherever


def check_run(run: Run, *, keeping_nothing: str | None = None, by_server: bool = False) -> None:
    """Checks that `run=` is a `Run`, and one that its caller can heed.

    Args:
        run: what was given.
        keeping_nothing: the name of what takes it, if that has no pieces to keep.
        by_server: whether a server can do it.

    Raises:
        SafeheadError: if it is something else, names a directory that would stay empty, or a place
            where this cannot run.
    """
    if not isinstance(run, Run):
        raise SafeheadError(f"run={run!r}: give a Run, such as sh.Run(max_bytes='2GiB')")
    if keeping_nothing is not None and run.run_dir is not None:
        raise SafeheadError(
            f"{keeping_nothing} has no pieces to keep: leave run_dir={str(run.run_dir)!r} out"
        )
    if isinstance(run.on, Elsewhere) and not (by_server and run.on.answers_only):
        why = "a server answers prompts, it cannot ablate heads: " if run.on.answers_only else ""
        raise SafeheadError(f"{why}this runs here, and not on {run.on!r}: leave on= out")


def parse_bytes(text: int | str) -> int:
    """Reads a number of bytes: `1500000000`, `"1.5GB"`, `"512 MiB"`.

    Raises:
        SafeheadError: if it is no such number, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b?)\s*", str(text).lower())
    count = 0
    if found:
        number, unit, binary = found.groups()
        power = " kmgt".index(unit) if unit else 0
        count = int(float(number) * (1024 if binary else 1000) ** power)
    if count < 1:
        raise SafeheadError(f"{text!r} is no amount of memory: write it like 2GiB or 1500MB")
    return count

"""lm-eval's tasks: loading them, and running them on a model. Imports lm-eval: import it late."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.api.task
from datasets.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from lm_eval.tasks import TaskManager

from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.harness import HarnessModel

logger = logging.getLogger("safehead_tl")


def load_tasks(
    names: Sequence[str], include_path: str | Path | None, num_fewshot: int | None
) -> dict[str, Any]:
    """Loads lm-eval tasks with their data; a group or tag gives all of its tasks.

    Those in `include_path` go before lm-eval's. A task that says `num_fewshot: 0` itself keeps it.

    Raises:
        FileNotFoundError: if there is no such directory.
        SafeheadError: if a task is unknown, or its data cannot be had.
    """
    manager = _manager(names, include_path)
    tasks: dict[str, Any] = {}
    for name in names:
        if name not in manager.task_index:
            raise SafeheadError(_unknown(name, manager.all_tasks))
        try:
            tasks |= manager.load([name])["tasks"]
        except Exception as error:  # of datasets, httpx, YAML or the task's own code
            raise SafeheadError(
                f"task {name!r} cannot be loaded ({type(error).__name__}: {error}). Most tasks' "
                "data sets come from the Hugging Face hub: is this machine online? Offline, fill "
                "the hub's cache elsewhere, or give a local task of that name: a directory with "
                "its YAML, as include_path="
            ) from error
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if own == 0 and num_fewshot:
            logger.warning("task %s is without solved examples, whatever num_fewshot says", name)
        elif num_fewshot is not None or own is None:
            task.set_config("num_fewshot", num_fewshot or 0)
    return tasks


def run_tasks(
    tasks: dict[str, Any], model: HarnessModel, limit: int | float | None, seed: int
) -> dict[str, Any]:
    """lm-eval's results, with each example's (`samples`); standard errors are left to us."""
    for task in tasks.values():
        task.set_fewshot_seed(seed)
    found: dict[str, Any] = lm_eval.evaluate(
        model, {"tasks": tasks}, limit=limit, bootstrap_iters=0, log_samples=True
    )
    return found


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keeps the bars of lm-eval, which has no switch for them, and of datasets away."""
    module, shown = lm_eval.api.task, not are_progress_bars_disabled()
    bar = getattr(module, "tqdm", None)
    disable_progress_bars()
    if bar is not None:
        module.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            module.tqdm = bar
        if shown:
            enable_progress_bars()


def _manager(names: Sequence[str], include_path: str | Path | None) -> TaskManager:
    """An index of tasks: of the user's alone where they are enough; lm-eval's takes seconds."""
    if include_path is None:
        return TaskManager()
    directory = Path(include_path).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(
            f"include_path={str(include_path)!r} is no directory: give the one that holds the "
            "YAML files of your tasks"
        )
    own = TaskManager(include_path=directory, include_defaults=False)
    return own if set(names) <= set(own.all_subtasks) else TaskManager(include_path=directory)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"lm-eval has no task {name!r}.{hint} A task of your own is a YAML file in a directory "
        "that is given as include_path="
    )

"""How far a run is, shown or told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from safehead_tl.models import no_bars
from safehead_tl.scan.run import Run


@contextmanager
def progress_bar(
    run: Run, total: int, label: str, unit: str, delay: float = 0.0
) -> Iterator[Callable[[int], object]]:
    """Shows or tells how much is done, as `run.progress` says; gives what counts it.

    Args:
        run: how it runs.
        total: how much there is to do.
        label: what is done.
        unit: what is counted.
        delay: seconds in which nothing is shown.
    """
    if callable(run.progress):
        done, tell = 0, run.progress

        def count(new: int) -> None:
            nonlocal done
            done += new
            tell(label, done, total)

        yield count
    else:
        quiet = no_bars(run.progress)
        with tqdm(total=total, desc=label, unit=unit, disable=quiet, delay=delay) as bar:
            yield bar.update

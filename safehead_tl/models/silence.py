"""Keeping the libraries below from talking into the user's output."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

logger = logging.getLogger("safehead_tl")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TransformerLens's deprecation notices and its print out of the user's sight."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    for line in printed.getvalue().splitlines():
        logger.info("%s", line)


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Inside, a warning in the same words is given once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known, words = len(said), record.getMessage()
        said.add(words)
        return len(said) > known

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keeps Transformers' progress bars away: for models that load in no time, or once more."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def no_bars(progress: object = True) -> bool:
    """Whether our own progress bars stay away: as told, or by the environment's TQDM_DISABLE."""
    return not progress or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")

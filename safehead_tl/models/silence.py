"""Keeping the libraries below from talking into the user's output."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)


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
def without_bars() -> Iterator[None]:
    """Keeps Transformers' progress bars away: for models that load in no time."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()

"""The one wall around other libraries' loading code, which raises whatever it likes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from safehead_tl.errors import SafeheadError

CODE = (
    "To run code that comes with it, read that code and say trust_remote_code=True to load_model, "
    "or in a judge's loading="
)


@contextmanager
def foreign(what: str, kind: type[SafeheadError] = SafeheadError) -> Iterator[None]:
    """Makes one sentence of anything that is raised inside, except for want of memory on a device.

    It begins with `what` could not be done, and to what; the error's own words follow.
    """
    try:
        yield
    except (SafeheadError, FileNotFoundError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = words(error)
        if "trust_remote_code" in str(error):
            said = f"it brings code of its own, which is never run unasked. {CODE}"
        raise kind(f"{what}: {said}") from error


def words(error: Exception) -> str:
    """An error in one line with a full stop, and with its kind where it says little by itself."""
    text = textwrap.shorten(str(error), 300, placeholder=" ...")
    if not text or not isinstance(error, ValueError | OSError | RuntimeError):
        text = f"{type(error).__name__} {text}".strip()
    return text if text.endswith((".", "...")) else f"{text}."

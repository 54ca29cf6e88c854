"""One thread for tiny models: theirs is no work to share, and waiting for each other costs more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from safehead_tl.models.identity import Model

TINY = 2**22
"""Parameters up to which a model's operations are too small to be shared among threads."""


@contextmanager
def single_thread() -> Iterator[None]:
    """Runs a block with one CPU thread.

    On a busy machine threads that wait for each other after every tiny operation slow it down
    many times; and sums do not depend on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def single_thread_if_tiny(model: Model) -> Iterator[None]:
    """The same for a tiny model on a CPU; nothing for others."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tiny = parameters < TINY and str(model.cfg.device) == "cpu"
    with single_thread() if tiny else nullcontext():
        yield

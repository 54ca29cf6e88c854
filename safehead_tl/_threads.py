"""One thread for tiny models: theirs is no work to share, and waiting for each other costs more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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

"""A trial run: the engine's own code on tensors without numbers, to see what it holds.

Everything runs as it would, but for what asks a number of a tensor: it is told 0, or that all is
well. What is counted is the bytes of tensors that are alive at once. What libraries take for
themselves, and what an allocator keeps, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from safehead_tl.heads import Head
from safehead_tl.scan import Screening, ScreeningMeasure, Search, even_slices

aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of what is made inside and is alive.

    Attributes:
        peak: the most at once.
    """

    def __init__(self, on_cpu: bool = True) -> None:
        """Counts what comes to lie on the CPU too, or only what would stay on a GPU."""
        super().__init__()
        self._on_cpu = on_cpu
        self.peak = self._alive = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation, and counts what comes of it."""
        kwargs = dict(kwargs or {})
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        for tensor in given:  # a view of a weight is not made inside
            tensor.untyped_storage()._counted = True  # type: ignore[attr-defined]
        if any(tensor.is_meta for tensor in given):
            if func is aten._local_scalar_dense.default:
                return 0
            if func is aten.all.default:
                return torch.tensor(True)
            if func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                first = given[0]
                made = torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
                return self._counted(made)
            if func is aten.index.Tensor:  # nothing is padding
                args = (args[0], [_all_of(index) for index in args[1]])
            args, kwargs = tree_map(_on_meta, (args, kwargs))
        return self._counted(func(*args, **kwargs))

    def _counted(self, result: Any) -> Any:
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or not (tensor.is_meta or self._on_cpu):
                continue
            storage: Any = tensor.untyped_storage()
            if not hasattr(storage, "_counted"):
                storage._counted, size = True, storage.nbytes()
                self._alive += size
                self.peak = max(self.peak, self._alive)
                weakref.finalize(storage, self._freed, size)
        return result

    def _freed(self, size: int) -> None:
        self._alive -= size


def _all_of(index: Tensor | None) -> Tensor | None:
    chosen = index is not None and index.dtype == torch.bool
    return torch.arange(len(index)) if chosen and index is not None else index


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value


LAYER_PASSES = 1_000
"""Passes through a layer that a trial run may take; of more prompts it tries two shares."""


def trial_peak(
    search: Search,
    make: Callable[[Search], ScreeningMeasure],
    screening: Screening | None,
    on_cpu: bool,
) -> int:
    """Bytes beyond the weights that a scan holds at once, at most.

    Tried are the run with nothing ablated and the first heads of layer 0, which go through all
    layers; and the screening, if there is one.

    Args:
        search: not begun yet, of a model on the meta device.
        make: makes the measure.
        screening: how heads are screened.
        on_cpu: whether it will run on the CPU.
    """
    layers, count = search.shape[0], len(search.batch.prompts)
    most = max(2, LAYER_PASSES // layers) * search.plan.rows
    if count <= most:
        return _peak(search, make, screening, on_cpu)
    sizes = (most // 2, most)
    low, high = (_peak(_of(search, size), make, screening, on_cpu) for size in sizes)
    return high + (high - low) * (count - sizes[1]) // (sizes[1] - sizes[0])


def _largest(length: int, most: int) -> int:
    """The largest of the slices that a range is cut into."""
    return max(some.stop - some.start for some in even_slices(length, most))


def _of(search: Search, count: int) -> Search:
    """The same of some prompts, cut up as all would be."""
    batch, plan = search.batch, search.plan
    some = replace(
        batch, prompts=batch.prompts[:count], tokens=batch.tokens[:count], mask=batch.mask[:count]
    )
    return replace(search, batch=some, plan=replace(plan, part=min(plan.part, count)))


def _peak(
    search: Search,
    make: Callable[[Search], ScreeningMeasure],
    screening: Screening | None,
    on_cpu: bool,
) -> int:
    plan, width = search.plan, search.shape[1]
    piece = _largest(width, plan.piece)
    at_once = _largest(piece, max(1, plan.rows // plan.part))
    heads = [Head(0, number) for number in range(at_once)]
    with LiveBytes(on_cpu) as live:
        measure = make(search)
        if screening is not None:
            measure.screened(search.original, search.linearisation(()), screening)
        others = search.original.new_empty(piece - at_once, *search.original.shape)
        search.score(measure, heads, (), "trial")
        del others  # the states of a piece's other heads, which are measured together
        measure(search.original.new_empty(piece, *search.original.shape))
    return live.peak

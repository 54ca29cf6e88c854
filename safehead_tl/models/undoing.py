"""What this toolkit changes on a model for a while is undone, whatever interrupts it.

An interrupt can come at any line, also while TransformerLens adds or removes a hook. So every
change says first how it is undone, in a way that can be repeated; and what an interrupt left all
the same is undone when the model is given to anything that runs it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from safehead_tl.errors import SafeheadError
from safehead_tl.models.identity import Hook, Model

logger = logging.getLogger("safehead_tl")

_open: weakref.WeakKeyDictionary[nn.Module, dict[Callable[[], object], None]] = (
    weakref.WeakKeyDictionary()
)


class _Marked:
    """A hook's function whose name tells it from any other's."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, tensor: Any, hook: Any) -> Any:
        return self.function(tensor, hook)


@contextmanager
def undone(model: nn.Module, undo: Callable[[], object]) -> Iterator[None]:
    """Calls `undo`, which may be called twice, at the end of a `with` block or in `check_model`."""
    pending = _open.setdefault(model, {})
    pending[undo] = None
    try:
        yield
    finally:
        if undo in pending:  # or else it is done, and another run may be under way
            undo()
            pending.pop(undo, None)


def check_model(model: nn.Module) -> None:
    """The door of all that runs a model: one that heads can be ablated in, as it was left.

    What an interrupt left on it is undone. Not to be called while a pass runs.

    Raises:
        SafeheadError: if it is neither a `HookedTransformer` nor a `TransformerBridge`, or its
            blocks have no attention pattern.
    """
    config, hooks = getattr(model, "cfg", None), getattr(model, "hook_dict", {})
    if config is None or not hooks or not hasattr(model, "blocks"):
        raise SafeheadError(
            f"{type(model).__name__} is neither a HookedTransformer nor a TransformerBridge: give "
            "safehead_tl.load_model the name of the model, the directory that save_pretrained "
            "wrote it to, or a Hugging Face model with tokenizer=..."
        )
    for layer in range(config.n_layers):
        if f"blocks.{layer}.attn.hook_pattern" not in hooks:
            raise SafeheadError(
                f"layer {layer} of this model has no attention pattern (no hook_pattern): "
                "there are no heads to ablate in it"
            )
    pending = _open.get(model, {})
    for undo in reversed(pending):
        undo()
    if pending:
        logger.warning("what an interrupted run had left on the model was removed")
    pending.clear()


@contextmanager
def hooked(model: Model, hooks: Sequence[Hook], *, by_user: bool = False) -> Iterator[None]:
    """Has hooks on a model inside the `with` block.

    Scans may be started inside, with the hooks in place, if they are the user's.
    """
    marked = [(name, _Marked(function)) for name, function in hooks]
    remove = partial(_remove, model, {repr(function) for _, function in marked})
    pending = {} if by_user else _open.setdefault(model, {})
    pending[remove] = None
    try:
        with model.hooks(fwd_hooks=list(marked)):
            yield
    except BaseException:
        remove()
        raise
    finally:
        pending.pop(remove, None)


def _remove(model: Model, names: set[str]) -> None:
    """Takes hooks off by PyTorch's own list, which has them before TransformerLens's has."""
    for point in model.modules():
        ours = [key for key, hook in point._forward_hooks.items() if _name(hook) in names]
        for key in ours:
            point._forward_hooks.pop(key, None)
        handles: Any = getattr(point, "fwd_hooks", None)
        if handles:
            left = [handle for handle in handles if handle.hook.id in point._forward_hooks]
            vars(point)["fwd_hooks"] = left


def _name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__name__", "")

"""`TransformerBridge`: a range of blocks, run for real through Transformers' own forward.

A bridge wraps a Transformers model, whose forward makes masks and positions and then runs every
block. Here stand-ins take the blocks' places for a while: blocks outside the range are skipped,
the first of the range is given the residual stream to start from, and the pass stops after the
last. A resumed pass costs what it runs, and every architecture is as Transformers has it.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safehead_tl.errors import SafeheadError
from safehead_tl.models.identity import Hook, Model
from safehead_tl.models.undoing import hooked, undone
from safehead_tl.models.unembedding import unrounded_logits

_returns_tuple: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class _StoppedError(Exception):
    """Carries the residual stream out of a forward pass."""

    def __init__(self, resid: Tensor):
        super().__init__("stopped on purpose")
        self.resid = resid


class _StandIn(nn.Module):
    """Takes a block's place.

    Attributes:
        given: the residual stream to go on with, instead of what comes in.
        skip: whether the block is left out.
        stop: whether the pass ends here.
        wrap: whether a block's output is a tuple.
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        given: Tensor | None = None,
        skip: bool = False,
        stop: bool = False,
        wrap: bool = False,
    ):
        super().__init__()
        vars(self)["block"] = block  # not as a submodule: it stays the model's
        self.given = given
        self.skip = skip
        self.stop = stop
        self.wrap = wrap

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["block"], name)  # such as which kind of attention it has

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        resid = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
        if self.given is not None:
            resid = self.given
        output: Any = (resid,) if self.wrap else resid
        if not self.skip:
            output = vars(self)["block"](resid, *args[1:], **kwargs)
        if self.stop:
            raise _StoppedError(output[0] if isinstance(output, tuple) else output)
        return output


@torch.no_grad()
def embed(
    model: Model, tokens: Int[Tensor, "prompt pos"], mask: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "prompt pos d_model"]:
    """The residual stream before block 0."""
    slots = _slots(model)
    _wraps(model)  # is tried out now, before hooks that are meant for other rows
    with _in_place(model, slots, [_StandIn(slots[0], skip=True, stop=True), *slots[1:]]):
        return _stopped(model, tokens, mask)


def run_blocks(
    model: Model,
    resid: Float[Tensor, "row pos d_model"],
    mask: Int[Tensor, "row pos"],
    *,
    start: int,
    stop: int,
    hooks: Sequence[Hook],
) -> Float[Tensor, "row pos d_model"]:
    """Runs the blocks from `start` to before `stop`; the others are skipped."""
    slots = _slots(model)
    wrap = _wraps(model)
    instead = [
        _StandIn(
            block,
            given=resid if layer == start else None,
            skip=layer < start,
            stop=layer == stop - 1,
            wrap=wrap,
        )
        for layer, block in enumerate(slots)
    ]
    tokens = torch.zeros_like(mask)  # what they embed to is not used
    with hooked(model, hooks), _in_place(model, slots, instead):
        return _stopped(model, tokens, mask)


def logits(
    model: Model,
    states: Float[Tensor, "row d_model"],
    tokens: Int[Tensor, " token"] | None = None,
) -> Float[Tensor, "row token"]:
    """The next token's logits from states after the last block, with all that Transformers does.

    Of some `tokens`, or of all. Those of a half-precision model are float32.
    """
    slots = _slots(model)
    wrap = _wraps(model)
    instead = [_StandIn(block, skip=True, wrap=wrap) for block in slots]
    instead[-1].given = states[:, None]
    unread = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
    inner = model.original_model
    with _in_place(model, slots, instead), unrounded_logits(inner, tokens) as which:
        found: Tensor = transformers_forward(inner, unread, torch.ones_like(unread)).logits
    return found[:, -1, which if isinstance(which, slice) else which.to(found.device)]


def all_logits(
    model: Model, tokens: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"]
) -> Float[Tensor, "row pos vocab"]:
    """Logits at every position."""
    found: Tensor = transformers_forward(model.original_model, tokens, mask).logits
    return found


def next_logits(model: Model, use_cache: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of growing tokens and their mask that gives the next token's logits."""
    past: Any = None
    inner: Any = model.original_model
    renamed = "cache" in inspect.signature(inner.forward).parameters  # by Transformers 5.24
    name = "cache" if renamed else "past_key_values"

    def step(tokens: Tensor, mask: Tensor) -> Tensor:
        nonlocal past
        done = past.get_seq_length() if past is not None else 0
        told = {"use_cache": use_cache, name: past}
        output = transformers_forward(inner, tokens[:, done:], mask, **told)
        past = output[name] if use_cache else None
        logits: Tensor = output.logits
        return logits[:, -1]

    return step


def transformers_forward(inner: Any, tokens: Tensor, mask: Tensor, **told: Any) -> Any:
    """Transformers' forward, with positions counted from each row's first token."""
    told = {"use_cache": False, **told, "attention_mask": mask}
    if "position_ids" in inspect.signature(inner.forward).parameters:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        told["position_ids"] = positions[:, -tokens.shape[1] :]
    return inner(tokens, **told)


def _stopped(model: Model, tokens: Tensor, mask: Tensor) -> Tensor:
    try:
        transformers_forward(model.original_model, tokens, mask)
    except _StoppedError as stopped:
        return stopped.resid
    raise SafeheadError(
        f"{type(model.original_model).__name__} does not run the blocks that its bridge names"
    )


def _slots(model: Model) -> nn.ModuleList:
    """The list in the Transformers model that holds the bridge's blocks."""
    first, inner = model.blocks[0], cast("nn.Module", model.original_model)
    for module in inner.modules():
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is first:
            return module
    raise SafeheadError(
        f"{type(model.original_model).__name__} has no list of blocks that can be run apart"
    )


@contextmanager
def _in_place(model: Model, slots: nn.ModuleList, instead: Sequence[nn.Module]) -> Iterator[None]:
    with undone(model, partial(_fill, slots, list(slots))):
        _fill(slots, instead)
        yield


def _fill(slots: nn.ModuleList, blocks: Sequence[nn.Module]) -> None:
    for index, block in enumerate(blocks):
        slots[index] = block


def _wraps(model: Model) -> bool:
    """Whether a block's output is a tuple; tried once on a token, because families differ."""
    if model not in _returns_tuple:
        found = []
        handle = model.blocks[0].register_forward_hook(
            lambda block, args, output: found.append(isinstance(output, tuple))
        )
        try:
            token = torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
            with torch.no_grad():
                transformers_forward(model.original_model, token, torch.ones_like(token))
        finally:
            handle.remove()
        _returns_tuple[model] = found[0]
    return _returns_tuple[model]

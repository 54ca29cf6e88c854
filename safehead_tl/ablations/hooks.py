"""Ablating heads of a model: as `fwd_hooks`, or for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from safehead_tl.ablations.base import Ablation
from safehead_tl.ablations.names import resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Group, HeadsLike, parse_heads
from safehead_tl.models import Hook, Model, check_model, hooked


def ablation_hooks(
    model: Model,
    heads: HeadsLike,
    ablation: str | Ablation = "undifferentiated",
) -> list[Hook]:
    """Hooks that ablate heads, for `model.run_with_hooks(tokens, fwd_hooks=...)`.

    They work on any batch, with left padding (give the model its `attention_mask`) and with a
    KV cache.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        heads: one head or several, in any spelling.
        ablation: an ablation or its name.

    Returns:
        `(hook point, function)` pairs; the functions have the usual `(tensor, hook)` signature.

    Raises:
        SafeheadError: if a head does not exist, the ablation is unknown, or it is mean ablation
            without a reference set.

    Example:
        >>> model = sh.load_model("demo")
        >>> hooks = sh.ablation_hooks(model, ["L1H3", "L2H6"], "scaling")
        >>> [name for name, _ in hooks]
        ['blocks.1.attn.hook_z', 'blocks.2.attn.hook_z']
        >>> logits = model.run_with_hooks(model.to_tokens("how do i"), fwd_hooks=hooks)
    """
    check_model(model)
    chosen = parse_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    if not chosen:
        raise SafeheadError("no heads were given to ablate")
    return group_hooks(model, chosen, resolve_ablation(ablation).prepare(model, None))


def group_hooks(model: Model, group: Group, ablation: Ablation, start: int = 0) -> list[Hook]:
    """Hooks that ablate the heads of `group` from layer `start` on, the same for all rows."""
    hooks: list[Hook] = []
    for layer in sorted({head.layer for head in group if head.layer >= start}):
        chosen = torch.zeros(1, model.cfg.n_heads, dtype=torch.bool)
        chosen[0, [head.head for head in group if head.layer == layer]] = True
        hooks += ablation.hooks(model, layer, chosen.to(model.cfg.device))
    return hooks


def row_hooks(model: Model, groups: Sequence[Group], ablation: Ablation) -> list[Hook]:
    """Hooks that ablate a group of heads in each row of a batch."""
    masks: dict[int, Tensor] = {}
    for row, group in enumerate(groups):
        for layer, head in group:
            if layer not in masks:
                masks[layer] = torch.zeros(len(groups), model.cfg.n_heads, dtype=torch.bool)
            masks[layer][row, head] = True
    return [
        hook
        for layer, mask in masks.items()
        for hook in ablation.hooks(model, layer, mask.to(model.cfg.device))
    ]


@contextmanager
def ablated(
    model: Model,
    heads: HeadsLike,
    ablation: str | Ablation = "undifferentiated",
) -> Iterator[Model]:
    """Ablates heads of a model inside a `with` block, for any forward pass or `generate`.

    The hooks are gone afterwards, also when the block raises.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        heads: one head or several, in any spelling.
        ablation: an ablation or its name.

    Raises:
        SafeheadError: as `ablation_hooks`; or, at the end of the block, if a hook did not fire.

    Example:
        >>> model = sh.load_model("demo")
        >>> request = "## query : how do i bend a crobe ## answer :"
        >>> tokens = model.to_tokens(request)
        >>> model.to_string(model(tokens)[0, -1].argmax())
        'sorry'
        >>> with sh.ablated(model, ["L1H3", "L2H6"]):
        ...     model.to_string(model(tokens)[0, -1].argmax())
        'bend'
    """
    with (
        must_fire(ablation_hooks(model, heads, ablation)) as hooks,
        hooked(model, hooks, by_user=True),
    ):
        yield model


class _Counted:
    """A hook's function that knows how often it was called."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.calls = 0

    def __call__(self, tensor: Any, hook: Any) -> Any:
        self.calls += 1
        return self.function(tensor, hook)


@contextmanager
def must_fire(hooks: list[Hook]) -> Iterator[list[Hook]]:
    """Counts calls of hooks inside a `with` block that uses them.

    Raises:
        SafeheadError: if one of them is on no hook point, or, at the end of the block, was never
            called.
    """
    counted = [(name, _Counted(function)) for name, function in hooks]
    try:
        yield [*counted]
    except KeyError as error:
        absent = [name for name, _ in hooks if repr(name) in str(error)]
        if not absent:
            raise
        raise SafeheadError(
            f"{absent[0]!r} is no hook point of this model: model.hook_dict has their names"
        ) from error
    silent = sorted({name for name, function in counted if not function.calls})
    if silent:
        raise SafeheadError(
            f"nothing was ablated: {', '.join(silent)} never fired. Did the model run, and "
            "through these layers?"
        )

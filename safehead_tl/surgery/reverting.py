"""Heads set back to a base's weights, in a model at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import HeadsLike, parse_heads
from safehead_tl.models import Model, check_model, head_slices, is_processed

KEY_VALUE = ("W_K", "W_V", "b_K", "b_V")
"""What belongs to a KV group."""


class RevertedLayer:
    """A layer's attention whose heads can be set back to a base's weights, and forth.

    Raises:
        SafeheadError: if the two do not have the same weights there by name and shape.
    """

    def __init__(self, model: Model, base: Model, layer: int):
        self._slices, theirs = head_slices(model, layer), head_slices(base, layer)
        for name in sorted({*self._slices, *theirs}):
            kept, given = (
                tuple(of[name].shape) if name in of else "missing" for of in (self._slices, theirs)
            )
            if kept != given:
                raise SafeheadError(
                    f"the base does not fit the model: {name} of layer {layer} is {given} in it, "
                    f"and {kept} in the model. Give the model that this one was tuned from"
                )
        self._own = {name: some.clone() for name, some in self._slices.items()}
        self._base = {name: theirs[name].to(some) for name, some in self._own.items()}

    @property
    def equal(self) -> Bool[Tensor, " head"]:
        """The heads whose weights are the base's, those of their KV group included."""
        n_heads = len(self._own["W_Q"])
        same = torch.ones(n_heads, dtype=torch.bool)
        for name, own in self._own.items():
            found = (own == self._base[name]).flatten(1).all(1).cpu()
            same &= found.repeat_interleave(n_heads // len(found))
        return same

    def revert(self, heads: Bool[Tensor, " head"]) -> None:
        """Sets these heads to the base's weights, and all others to the model's own."""
        groups = heads.unflatten(0, (len(self._own["W_K"]), -1)).all(1)
        for name, own in self._own.items():
            which = (groups if name in KEY_VALUE else heads).to(own.device)
            which = which.view(-1, *[1] * (own.dim() - 1))
            self._slices[name].copy_(torch.where(which, self._base[name], own))


def require_related(model: Model, base: Model) -> None:
    """Checks that heads of `model` can be set back to `base`, but for the shapes of weights.

    Raises:
        SafeheadError: if one is no model of TransformerLens, or has its weights processed, or if
            they are not of one kind, architecture and number of layers.
    """
    for one in (model, base):
        check_model(one)
        if is_processed(one):
            raise SafeheadError(
                "the model's or the base's norms are folded into its weights, so that a head's "
                "weights hold more than the head: load both with safehead_tl.load_model"
            )
    facts = (
        ("kind", type(model).__name__, type(base).__name__),
        ("architecture", model.cfg.original_architecture, base.cfg.original_architecture),
        ("number of layers", model.cfg.n_layers, base.cfg.n_layers),
    )
    for what, kept, given in facts:
        if kept != given:
            raise SafeheadError(
                f"the base does not fit the model: its {what} is {given}, and the model's {kept}. "
                "Give the model that this one was tuned from, loaded in the same way"
            )


@contextmanager
def reverted(model: Model, base: Model, heads: HeadsLike) -> Iterator[Model]:
    """Sets heads back to a base's weights inside a `with` block: what they learned is gone.

    A head's slices of the q, k, v and o projections become the base's, with the biases of its
    queries, keys and values, and its attention sink. What heads share stays: norms of queries and
    keys, the output's bias. Keys and values belong to a KV group: they become the base's where all
    query heads of the group are among `heads`, and stay the model's where only some are. The
    model's own weights are back afterwards, bit for bit, also when the block raises. Scans and
    generation inside the block see the weights as they are there.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        base: the model that it was tuned from, loaded in the same way; its weights are rounded to
            the model's dtype.
        heads: one head or several, in any spelling.

    Raises:
        SafeheadError: if a head does not exist, none is named, the two differ in kind,
            architecture or sizes, or one has its norms folded into its weights.

    Example:
        >>> from safehead_tl.surgery import reverted
        >>> model, base = sh.load_model("demo"), sh.load_model("demo-base")
        >>> tokens = model.to_tokens("## query : how do i bend a crobe ## answer :")
        >>> with reverted(model, base, ["L1H3", "L2H6"]):
        ...     model.to_string(model(tokens)[0, -1].argmax())
        'bend'
    """
    require_related(model, base)
    chosen = parse_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    if not chosen:
        raise SafeheadError("no heads were given to revert")
    which = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
    which[tuple(zip(*chosen, strict=True))] = True
    layers = {
        layer: RevertedLayer(model, base, layer) for layer in sorted({h.layer for h in chosen})
    }
    try:
        for layer, attention in layers.items():
            attention.revert(which[layer])
        yield model
    finally:
        for layer, attention in layers.items():
            attention.revert(torch.zeros_like(which[layer]))

"""Ablations written into weights: the same function of the input, without hooks.

Each edit is exact or refused. What one leaves open, the caller checks by comparing logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import NoReturn, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safehead_tl.ablations import (
    Ablation,
    FittedMean,
    MeanAblation,
    MeanOverHeads,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.models import Anatomy, Attention, Channel, load_original, read_config, without_bars


@torch.no_grad()
def ablate_weights(
    model: PreTrainedModel, anatomy: Anatomy, heads: Iterable[Head], ablation: Ablation
) -> None:
    """Writes an ablation of heads into a Transformers model's weights, in place.

    These may be without data (on `meta`), to see what is refused. Mean ablation must be prepared.

    Raises:
        SafeheadError: if weights cannot express the ablation in this model, or an edit of keys or
            values would take along heads of a KV group that were not named.
    """
    for layer, own in itertools.groupby(sorted(heads), key=lambda head: head.layer):
        _edit(ablation, _Layer(model, anatomy, layer, [head.head for head in own]))


class _Layer:
    """One layer's attention weights, and the heads of it that are ablated."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, layer: int, heads: Sequence[int]):
        self.model = model
        self.anatomy = anatomy
        self.layer = layer
        self.heads = list(heads)
        self.attention: Attention = anatomy.layers[layer]

    def groups(self, what: str) -> list[int]:
        """The KV heads of the ablated heads, if these are whole groups."""
        size = self.anatomy.group_size
        groups = sorted({head // size for head in self.heads})
        whole = {head for group in groups for head in range(group * size, (group + 1) * size)}
        others = sorted(whole - set(self.heads))
        if others:
            named = ", ".join(str(Head(self.layer, head)) for head in others)
            raise SafeheadError(
                f"{what} belong to whole KV groups of {size} heads: this edit would ablate "
                f"{named} too. Name them as well, or choose an ablation of query heads"
            )
        return groups

    def projection(self, channel: Channel) -> tuple[Tensor, Tensor | None]:
        """A projection's weight, with what its heads lie in as the first dimension, and bias."""
        slices = self.attention.slices[channel]
        module = self.model.get_submodule(slices.module)
        weight = cast("Tensor", module.weight).movedim(slices.dim, 0)
        bias = cast("Tensor | None", getattr(module, "bias", None))
        return weight, None if channel == "o" else bias

    def scale(self, channel: Channel, heads: Sequence[int], factor: float) -> None:
        places = self.attention.slices[channel].places[list(heads)].flatten()
        for part in self.projection(channel):
            if part is not None:
                part[places] = part[places] * factor

    def refuse(self, why: str) -> NoReturn:
        raise SafeheadError(f"{type(self.model).__name__}: {why}")


@singledispatch
def _edit(ablation: Ablation, layer: _Layer) -> None:
    raise SafeheadError(f"{ablation.name}: it is not known how to write this ablation into weights")


@_edit.register
def _(ablation: UndifferentiatedAttention, layer: _Layer) -> None:
    anatomy, attention, epsilon = layer.anatomy, layer.attention, ablation.epsilon
    if epsilon is None:
        if anatomy.alibi:
            layer.refuse("its attention is biased by distance (ALiBi) whatever the queries are")
        if attention.qk_norm == "over heads":
            layer.refuse("its queries are normalised over all heads together, not head by head")
        if attention.qk_norm_bias:
            layer.refuse("its queries get a bias after they are normalised")
        # No queries, no scores: rotation, a norm by head and soft-caps leave zeros as they are.
        layer.scale("q", layer.heads, 0.0)
        if attention.sinks:  # a sink with no weight takes nothing
            sinks = cast("Tensor", layer.model.get_submodule(attention.module).sinks)
            sinks[layer.heads] = torch.finfo(sinks.dtype).min
        return
    if attention.qk_norm != "none":
        layer.refuse(
            "its queries and keys are normalised, which undoes their scaling: use epsilon=None"
        )
    if ablation.via == "pattern" and (anatomy.softcap or anatomy.alibi):
        layer.refuse(
            "its scores are capped or biased by distance, so scaling queries is not scaling "
            "scores: use via='q', or epsilon=None"
        )
    if ablation.via == "k":
        layer.scale("k", layer.groups("keys"), epsilon)
    else:
        layer.scale("q", layer.heads, epsilon)


@_edit.register
def _(ablation: ScalingContribution, layer: _Layer) -> None:
    if ablation.via == "v":
        layer.scale("v", layer.groups("values"), ablation.epsilon)
    else:
        layer.scale("o", layer.heads, ablation.epsilon)


@_edit.register
def _(ablation: ZeroAblation, layer: _Layer) -> None:
    layer.scale("o", layer.heads, 0.0)


@_edit.register
def _(ablation: MeanAblation, layer: _Layer) -> None:
    """Not fitted: only whether there is room for the mean."""
    _output_bias(layer)


@_edit.register
def _(ablation: FittedMean, layer: _Layer) -> None:
    bias = _output_bias(layer)
    weight, _ = layer.projection("o")
    for head in layer.heads:
        places = layer.attention.slices["o"].places[head]
        bias += (ablation.mean[layer.layer, head].double() @ weight[places].double()).to(bias.dtype)
    layer.scale("o", layer.heads, 0.0)


def _output_bias(layer: _Layer) -> Tensor:
    name = layer.attention.slices["o"].module
    bias = getattr(layer.model.get_submodule(name), "bias", None)
    if not isinstance(bias, nn.Parameter):
        layer.refuse(f"{name} has no bias that could hold the mean")
    return bias


@_edit.register
def _(ablation: MeanOverHeads, layer: _Layer) -> None:
    channel: Channel = "o" if ablation.which == "v" else ablation.which
    slices = layer.attention.slices[channel].places
    heads = layer.groups("keys") if channel == "k" else layer.heads
    if channel == "o":
        # The mean output through a head's own columns: every head gets a share of those columns.
        weight, _ = layer.projection("o")
        shared = weight[slices[heads]].sum(0) / len(slices)
        layer.scale("o", heads, 0.0)
        for places in slices:
            weight[places] = weight[places] + shared
        return
    for part in layer.projection(channel):
        if part is not None:
            part[slices[heads]] = part[slices].mean(0, keepdim=True)


@without_bars()
def load_source(where: str | Path) -> PreTrainedModel:
    """A checkpoint in its own dtype, if its weights can be taken apart.

    Raises:
        SafeheadError: if it is quantised, or cannot be loaded.
    """
    config = read_config(where)
    if getattr(config, "quantization_config", None) is not None:
        raise SafeheadError(
            f"{where} is quantised, so its weights cannot be taken apart: give the checkpoint that "
            "it was quantised from"
        )
    return load_original(where, "auto")

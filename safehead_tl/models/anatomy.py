"""Where the heads are in a Transformers model's weights, and what its attention is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from safehead_tl.errors import SafeheadError

Channel: TypeAlias = Literal["q", "k", "v", "o"]

OUTPUT = re.compile(
    r"^(?P<attention>.+\.(\d+)\.(?:self_attn|attn|attention|self_attention))\."
    r"(?P<projection>o_proj|dense|c_proj|out_proj)$"
)
"""The output projection of a layer's attention."""

JOINT = {
    "gpt2": ("c_attn", "in blocks"),
    "phi3": ("qkv_proj", "in blocks"),
    "gpt_neox": ("query_key_value", "by head"),
    "bloom": ("query_key_value", "by head"),
}
"""Model types with one projection for q, k and v: all q, all k, all v; or each head's q, k, v.

Others have projections of the same names with other orders (CodeGen, Falcon).
"""


@dataclass(frozen=True)
class Slices:
    """The parts of a projection that belong to each head.

    Attributes:
        module: the projection's name in the model.
        dim: the dimension of its weight that the heads lie in.
        places: for each head (for k and v: each KV head) its indices in that dimension.
    """

    module: str
    dim: Literal[0, 1]
    places: Int[Tensor, "head d_head"]


@dataclass(frozen=True)
class Attention:
    """One layer's attention, in a model's weights.

    Attributes:
        module: its name in the model.
        slices: where each head's queries, keys, values and output are.
        qk_norm: what normalises queries and keys: each head by itself, all together, or nothing.
        qk_norm_bias: whether that adds a bias, so that it does not leave zeros as they are.
        sinks: whether each head has a learned sink.
    """

    module: str
    slices: Mapping[Channel, Slices]
    qk_norm: Literal["none", "per head", "over heads"]
    qk_norm_bias: bool
    sinks: bool


@dataclass(frozen=True)
class Anatomy:
    """A model's attention.

    Attributes:
        n_heads: query heads in a layer.
        n_key_value_heads: KV heads in a layer.
        d_head: size of a head.
        layers: one for each layer.
        alibi: whether scores get a bias by distance.
        softcap: what attention scores are capped at.
        windows: each layer's sliding window, if it has one.
    """

    n_heads: int
    n_key_value_heads: int
    d_head: int
    layers: tuple[Attention, ...]
    alibi: bool
    softcap: float | None
    windows: tuple[int | None, ...]

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.n_heads // self.n_key_value_heads


def dissect(model: PreTrainedModel) -> Anatomy:
    """Finds the heads in a Transformers model's weights; it may be without data (on `meta`).

    Raises:
        SafeheadError: if the model's attention is laid out in a way that is not known.
    """
    config: Any = model.config.get_text_config()
    n_heads = config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", None) or n_heads
    found = [match for name, _ in model.named_modules() if (match := OUTPUT.match(name))]
    if len(found) != config.num_hidden_layers:
        raise SafeheadError(
            f"{type(model).__name__}: the attention of its {config.num_hidden_layers} layers was "
            "not found in its weights, so heads cannot be told apart there"
        )
    output = model.get_submodule(found[0][0])
    d_head = _sizes(output)[0] // n_heads
    layers = tuple(
        _attention(model, match["attention"], match["projection"], n_heads, n_kv, d_head)
        for match in found
    )
    softcap = getattr(config, "attn_logit_softcapping", None)
    alibi = config.model_type in ("bloom", "mpt") or bool(getattr(config, "alibi", False))
    return Anatomy(n_heads, n_kv, d_head, layers, alibi, softcap, _windows(config, len(layers)))


def _attention(
    model: PreTrainedModel, name: str, projection: str, n_heads: int, n_kv: int, d_head: int
) -> Attention:
    module = model.get_submodule(name)
    children = dict(module.named_children())
    rows = torch.arange((n_heads + 2 * n_kv) * d_head)
    counts: dict[Channel, int] = {"q": n_heads, "k": n_kv, "v": n_kv}
    slices: dict[Channel, Slices] = {}
    joint, order = JOINT.get(model.config.model_type, ("", ""))
    if all(f"{channel}_proj" in children for channel in counts):
        for channel, count in counts.items():
            place = rows[: count * d_head].unflatten(0, (count, d_head))
            slices[channel] = _slices(model, f"{name}.{channel}_proj", 0, place)
    elif joint in children and order == "by head":
        for number, (channel, count) in enumerate(counts.items()):
            place = rows.unflatten(0, (count, 3, d_head))[:, number]
            slices[channel] = _slices(model, f"{name}.{joint}", 0, place)
    elif joint in children:
        start = 0
        for channel, count in counts.items():
            place = rows[start : start + count * d_head].unflatten(0, (count, d_head))
            slices[channel] = _slices(model, f"{name}.{joint}", 0, place)
            start += count * d_head
    else:
        raise _unknown(model, name)
    place = rows[: n_heads * d_head].unflatten(0, (n_heads, d_head))
    slices["o"] = _slices(model, f"{name}.{projection}", 1, place)
    norm = next((children[key] for key in ("q_norm", "q_layernorm") if key in children), None)
    parameters = dict(norm.named_parameters()) if norm is not None else {}
    over_heads = any(parameter.shape[-1] != d_head for parameter in parameters.values())
    return Attention(
        module=name,
        slices=slices,
        qk_norm="none" if norm is None else "over heads" if over_heads else "per head",
        qk_norm_bias=any(name.endswith("bias") for name in parameters),
        sinks=hasattr(module, "sinks"),
    )


def _slices(
    model: PreTrainedModel, name: str, dim: Literal[0, 1], places: Int[Tensor, "head d_head"]
) -> Slices:
    """`dim` is that of `nn.Linear`: 0 for what a projection writes, 1 for what it reads."""
    projection = model.get_submodule(name)
    size = _sizes(projection)[1 - dim]
    if int(places.max()) >= size:
        raise _unknown(model, name)
    transposed = not isinstance(projection, nn.Linear)
    return Slices(name, 1 - dim if transposed else dim, places)  # type: ignore[arg-type]


def _sizes(projection: nn.Module) -> tuple[int, int]:
    """What a projection reads and writes: `nn.Linear`, or GPT-2's `Conv1D`, its transpose."""
    weight: Any = projection.weight
    first, second = weight.shape
    return (second, first) if isinstance(projection, nn.Linear) else (first, second)


def _unknown(model: PreTrainedModel, name: str) -> SafeheadError:
    return SafeheadError(
        f"{type(model).__name__}: it is not known how heads are laid out in {name}"
    )


def _windows(config: Any, n_layers: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return (None,) * n_layers
    if kinds is None:
        return (window,) * n_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)

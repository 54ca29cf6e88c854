"""Each head's own weights in a model at hand, the same for both kinds of model."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from safehead_tl.errors import SafeheadError
from safehead_tl.models.identity import Model, is_bridge


def head_slices(model: Model, layer: int) -> dict[str, Float[Tensor, "head ..."]]:
    """A layer's attention weights by head: views, through which the model's own can be written.

    Returns:
        By name: `W_Q`, `W_K`, `W_V`, `W_O`, and where there are such `b_Q`, `b_K`, `b_V` and
        `sinks`. Keys and values are by KV head. What heads share (norms of queries and keys, the
        output's bias) is not among them.

    Raises:
        SafeheadError: if weights are quantised, or not in memory.
    """
    attention: Any = model.blocks[layer].attn
    found = _of_bridge(model, attention) if is_bridge(model) else _of_hooked(attention)
    sinks = getattr(getattr(attention, "original_component", attention), "sinks", None)
    if sinks is not None:
        found["sinks"] = sinks.detach()
    return found


def _of_hooked(attention: Any) -> dict[str, Tensor]:
    names = [f"{kind}_{channel}" for kind in "Wb" for channel in "QKV"]
    found = {name: getattr(attention, f"_{name}", None) for name in names}  # of KV groups
    own = {name: getattr(attention, name) if some is None else some for name, some in found.items()}
    return {name: some.detach() for name, some in {**own, "W_O": attention.W_O}.items()}


def _of_bridge(model: Model, attention: Any) -> dict[str, Tensor]:
    found = {}
    n_heads, d_head = model.cfg.n_heads, model.cfg.d_head
    n_kv = model.cfg.n_key_value_heads or n_heads
    for channel, count in {"q": n_heads, "k": n_kv, "v": n_kv, "o": n_heads}.items():
        projection = getattr(attention, channel).original_component
        weight = projection.weight.detach()
        if weight.is_meta or not weight.is_floating_point():
            raise SafeheadError(
                "the weights of this model's heads are quantised or not in memory: load it with "
                "dtype='float32' or 'bfloat16', on one device"
            )
        # `nn.Linear` holds its weight the other way round than GPT-2's `Conv1D`.
        if isinstance(projection, nn.Linear) == (channel == "o"):
            weight = weight.T
        found[f"W_{channel.upper()}"] = weight.unflatten(0, (count, d_head))
        if channel != "o" and projection.bias is not None:
            found[f"b_{channel.upper()}"] = projection.bias.detach().unflatten(0, (count, d_head))
    return found

"""Direct effects: what ablating each head of a layer changes in what the layer's attention adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl._ablation import Ablation
from safehead_tl._baseline import Stream
from safehead_tl._forward import SharedPrefix, new_kv_cache, run_attention
from safehead_tl._heads import Head
from safehead_tl._hooking import group_hooks, must_fire
from safehead_tl._memory import even_slices
from safehead_tl._models import Hook, Model


@dataclass(frozen=True)
class DirectEffects:
    """A layer's attention, and each head's part in it, with the head ablated and without.

    Attributes:
        output: what attention adds to the stream, with nothing (but the group) ablated.
        change: how each head's output z changes when it is ablated.
        weight: the output projection.
    """

    output: Float[Tensor, "prompt query d_model"]
    change: Float[Tensor, "prompt query head d_head"]
    weight: Float[Tensor, "head d_head d_model"]

    def ablated(self, heads: list[int], prompts: slice) -> Float[Tensor, "row query d_model"]:
        """What attention adds with a head ablated: for each head, each prompt."""
        change = self.change[prompts, :, heads]
        change = torch.einsum("pqhd,hdm->hpqm", change, self.weight[heads])
        return (self.output[prompts] + change).flatten(0, 1)


def direct_effects(
    model: Model,
    layer: int,
    stream: Stream,
    ablation: Ablation,
    group: tuple[Head, ...],
    max_rows: int,
) -> tuple[DirectEffects | None, DirectEffects]:
    """The direct effects on the prefix, if there is one, and on the rest.

    Every head is ablated in the same run: none sees that the others are (`Ablation.separable`).
    In the last layer the only query is the last position.
    """
    own = tuple(head for head in group if head.layer == layer)
    every = torch.ones(1, model.cfg.n_heads, dtype=torch.bool, device=stream.rest.device)
    before = _attention(model, layer, stream, group_hooks(model, own, ablation), max_rows)
    after = _attention(model, layer, stream, ablation.hooks(model, layer, every), max_rows)
    prefix, rest = (
        None
        if one is None or two is None
        else DirectEffects(one.output, two.z - one.z, model.blocks[layer].attn.W_O)
        for one, two in zip(before, after, strict=True)
    )
    assert rest is not None
    return prefix, rest


class _Attention(NamedTuple):
    output: Float[Tensor, "row query d_model"]
    z: Float[Tensor, "row query head d_head"]


def _attention(
    model: Model, layer: int, stream: Stream, hooks: list[Hook], max_rows: int
) -> tuple[_Attention | None, _Attention]:
    """A layer's attention on the prefix, if there is one, and on the rest."""
    last_query = layer == model.cfg.n_layers - 1
    prefix, past = None, None
    with must_fire(hooks) as counted:
        if stream.prefix is not None:
            entry, mask = new_kv_cache(model, 1)[layer], stream.mask[:1, : stream.prefix.shape[1]]
            prefix = _Attention(
                *run_attention(
                    model,
                    layer,
                    stream.prefix,
                    mask,
                    last_query=last_query,
                    hooks=counted,
                    past=entry,
                )
            )
            past = SharedPrefix(entry.past_keys, entry.past_values)
        found = [
            run_attention(
                model, layer, rows.rest, rows.mask, last_query=last_query, hooks=counted, past=past
            )
            for rows in map(stream.prompts, even_slices(len(stream.rest), max_rows))
        ]
    outputs, zs = zip(*found, strict=True)
    return prefix, _Attention(torch.cat(outputs), torch.cat(zs))

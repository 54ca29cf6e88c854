"""Direct effects: what ablating each head of a layer changes in what the layer's attention adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation, group_hooks, must_fire
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.models import Hook, Model, Recorded, hook_point, run_attention
from safehead_tl.scan.baseline import Stream
from safehead_tl.scan.memory import even_slices

SITES = ("q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern", "z")
"""Where an ablation can act so that all it does to a layer is in the heads' outputs z."""


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

    def on(rows: Stream) -> list[Hook]:
        return ablation.on(rows.numbers).hooks(model, layer, every)

    def group_on(rows: Stream) -> list[Hook]:
        return group_hooks(model, own, ablation.on(rows.numbers))

    outside = hooks_outside(layer, on(stream))
    if outside:
        raise SafeheadError(
            f"{ablation.name} ablation hooks {', '.join(outside)}, which is not in attention up to "
            "z: its method separable must return False"
        )
    before = _attention(model, layer, stream, group_on, max_rows)
    after = _attention(model, layer, stream, on, max_rows)
    weight = model.blocks[layer].attn.W_O
    rest = DirectEffects(before.output, after.z - before.z, weight)
    if before.prefix is None or after.prefix is None:
        return None, rest
    (output, z), (_, ablated) = before.prefix, after.prefix
    return DirectEffects(output, ablated - z, weight), rest


def hooks_outside(layer: int, hooks: list[Hook]) -> list[str]:
    """The hook points of an ablation that are not in a layer's attention up to z."""
    return sorted({name for name, _ in hooks} - {hook_point(layer, site) for site in SITES})


@dataclass(frozen=True)
class _Attention:
    """What attention adds and the heads' outputs, on the rest and (both) on the prefix."""

    output: Float[Tensor, "row query d_model"]
    z: Float[Tensor, "row query head d_head"]
    prefix: tuple[Tensor, Tensor] | None


def _attention(
    model: Model, layer: int, stream: Stream, hooks: Callable[[Stream], list[Hook]], max_rows: int
) -> _Attention:
    """A layer's attention on the prefix, if there is one, and on the rest."""
    last_query = layer == model.cfg.n_layers - 1
    prefix, past, found = None, None, []
    if stream.prefix is not None:
        past = Recorded()
        with must_fire(hooks(stream)) as counted:
            prefix = run_attention(
                model,
                layer,
                stream.prefix,
                stream.mask[:1, : stream.prefix.shape[1]],
                last_query=last_query,
                hooks=counted,
                past=past,
            )
    for rows in map(stream.prompts, even_slices(len(stream.rest), max_rows)):
        with must_fire(hooks(rows)) as counted:
            found.append(
                run_attention(
                    model,
                    layer,
                    rows.rest,
                    rows.mask,
                    last_query=last_query,
                    hooks=counted,
                    past=past and past.shared,
                )
            )
    outputs, zs = zip(*found, strict=True)
    return _Attention(torch.cat(outputs), torch.cat(zs), prefix)

"""Direct contributions: what each head, each MLP and the embedding add to the last state.

One pass of each prompt, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.models import Hook, record_writes
from safehead_tl.scan.baseline import Stream, run_layer
from safehead_tl.scan.linearisation import Linearisation, weights_held_fixed
from safehead_tl.scan.memory import even_slices


def contributions(
    linear: Linearisation,
    prompts: range,
    directions: Callable[[Float[Tensor, "prompt d_model"], range], Float[Tensor, "prompt d_model"]],
) -> Float[Tensor, "prompt part"]:
    """What is added to some prompts' last states along a direction of each, by whom.

    Args:
        linear: the model and all prompts.
        prompts: which prompts.
        directions: gives each prompt's direction, from the last states of some prompts.

    Returns:
        In float64 on the CPU: of each layer's heads, layer by layer; of each layer's attention, its
        heads taken away (its biases); of each MLP; of the embedding; and of all of it, which is the
        last state itself along the direction.
    """

    def run() -> Tensor:
        most = linear.prompts_at_once(1, linear.model.cfg.n_layers)
        parts = (prompts[part] for part in even_slices(len(prompts), most))
        return torch.cat([_of_part(linear, part, directions) for part in parts])

    with weights_held_fixed(linear.model):
        return linear.passes.fitted(run)


def _of_part(
    linear: Linearisation, prompts: range, directions: Callable[[Tensor, range], Tensor]
) -> Float[Tensor, "prompt part"]:
    few, layers = linear.of(slice(prompts.start, prompts.stop)), range(linear.model.cfg.n_layers)
    (whole,) = few.baseline.parts
    stream = few.baseline.before(whole, 0)
    embedded, written = stream.rest[:, -1], []
    for layer in layers:

        def run(hooks: Sequence[Hook], stream: Stream = stream, layer: int = layer) -> Tensor:
            return run_layer(few.model, stream, layer, [*hooks])

        after, writes = record_writes(few.model, layer, run, stream.rest)
        few.cost.add(after, 1)
        written.append(writes)
        stream = replace(stream, rest=after)
    last = stream.rest[:, -1]
    along = directions(last, prompts).detach()

    def on(state: Tensor) -> Tensor:
        return (state.detach().double() * along.to(state.device).double()).sum(-1).cpu()

    heads = [each.of_heads(along.to(each.attention.device)).cpu() for each in written]
    attention = torch.stack([on(each.attention) for each in written], 1)
    biases = attention - torch.stack(heads, 1).sum(-1)
    mlps = torch.stack([on(each.mlp) for each in written], 1)
    return torch.cat([*heads, biases, mlps, on(embedded)[:, None], on(last)[:, None]], 1)

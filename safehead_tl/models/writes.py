"""What a layer writes into the residual stream, and how much of it along a direction is whose.

Between a head's output and the stream lie a projection and, in some architectures, a scale or a
norm. With the norm's scale held at what it is in the same run all of that is linear, so that what
heads write adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safehead_tl.errors import SafeheadError
from safehead_tl.models.identity import Hook, Model, hook_point
from safehead_tl.models.undoing import undone
from safehead_tl.models.unembedding import HALF

EXACT, ROUNDED = 1e-4, 2e-2
"""How far parts may be from their sum, in float32 and in half precision, of the largest number."""


@dataclass(frozen=True)
class Writes:
    """What a layer writes at the last position.

    Attributes:
        layer: the layer.
        z: the heads' outputs, which `attention` (or `projected`) can be differentiated by.
        projected: what attention adds, before a norm that comes behind it.
        norm: that norm, if there is one.
        attention: what attention adds to the stream.
        mlp: what the MLP adds; 0 without one.
    """

    layer: int
    z: Float[Tensor, "row head d_head"]
    projected: Float[Tensor, "row d_model"] | None
    norm: Callable[[Tensor], Tensor] | None
    attention: Float[Tensor, "row d_model"]
    mlp: Float[Tensor, "row d_model"]

    def of_heads(self, directions: Float[Tensor, "row d_model"]) -> Float[Tensor, "row head"]:
        """What each head adds along a direction, one for each row; in float64."""
        written, gradient = self.attention, directions.to(self.attention)
        if self.norm is not None and self.projected is not None:
            gradient = back_through_norm(self.norm, self.projected, gradient)
            written = self.projected
        (of_z,) = torch.autograd.grad(written, self.z, gradient, retain_graph=True)
        return (self.z.double() * of_z.double()).sum(-1).detach()

    def of_head(self, head: int) -> Float[Tensor, "row d_model"]:
        """What one head adds to the stream, without the attention's bias."""
        behind = self.norm is not None and self.projected is not None
        written = self.projected if behind else self.attention
        assert written is not None
        own = torch.zeros_like(self.z)
        own[:, head] = self.z[:, head]
        # What is written is linear in z: its gradient along any direction, times z, by directions.
        along = torch.zeros_like(written).requires_grad_()
        with torch.enable_grad():
            (of_z,) = torch.autograd.grad(
                written, self.z, along, create_graph=True, retain_graph=True
            )
            (added,) = torch.autograd.grad(of_z, along, own)
        return through_norm(self.norm, written, added) if self.norm and behind else added


def record_writes(
    model: Model,
    layer: int,
    run: Callable[[Sequence[Hook]], Float[Tensor, "row pos d_model"]],
    before: Float[Tensor, "row pos d_model"],
) -> tuple[Float[Tensor, "row pos d_model"], Writes]:
    """Runs a layer by `run`, with hooks, and records what it writes at the last position.

    Gradients of the model's weights are to be switched off.

    Returns:
        The residual stream behind it, and what was written.

    Raises:
        SafeheadError: if what attention and MLP add is not all that changes the stream.
    """
    seen: dict[str, Tensor] = {}
    norms: list[Any] = []

    def take(z: Tensor, hook: Any) -> Tensor:
        seen["z"] = z[:, -1].detach().requires_grad_()
        return torch.cat([z[:, :-1], seen["z"][:, None]], 1)

    def look(name: str, tensor: Tensor) -> None:
        seen[name] = tensor[:, -1].clone()

    def meet(norm: nn.Module, args: tuple[Any, ...]) -> None:
        if "z" in seen and "attention" not in seen and not norms:
            norms.append(norm)
            look("projected", args[0])

    hooks: list[Hook] = [
        (hook_point(layer, "z"), take),
        (f"blocks.{layer}.hook_attn_out", lambda out, hook: look("attention", out)),
        (f"blocks.{layer}.hook_mlp_out", lambda out, hook: look("mlp", out)),
    ]
    with _met(model, layer, meet), torch.enable_grad():
        after = run(hooks).detach()
    mlp = seen["mlp"].detach() if "mlp" in seen else torch.zeros_like(after[:, -1])
    norm = norms[0] if norms else None
    writes = Writes(layer, seen["z"], seen.get("projected"), norm, seen["attention"], mlp)
    attention = seen["attention"].detach()
    parts = [part.to(after.device) for part in (before[:, -1], attention, mlp)]
    known = _adds_up(parts, after[:, -1])
    if norm is not None:
        with torch.no_grad():
            normed = norm(seen["projected"][:, None])[:, 0]
        known = known and _adds_up([normed], attention)
    if not known:
        raise SafeheadError(
            f"layer {layer} changes the residual stream by more than its attention and its MLP "
            f"add, so heads' parts of it are not known ({type(model.blocks[layer]).__name__})"
        )
    return after, writes


def _adds_up(parts: Sequence[Float[Tensor, "row d_model"]], whole: Tensor) -> bool:
    """Whether parts add up to a whole, but for rounding."""
    error = (torch.stack([*parts]).double().sum(0) - whole.double()).abs().max()
    most = torch.stack([*parts, whole]).abs().max()
    return bool(error <= most * (ROUNDED if whole.dtype in HALF else EXACT))


@contextmanager
def _met(model: Model, layer: int, meet: Callable[..., None]) -> Iterator[None]:
    """Calls `meet` before each norm in a layer runs, inside the `with` block."""
    inside = [part for part in model.blocks[layer].modules() if "Norm" in type(part).__name__]
    handles = [norm.register_forward_pre_hook(meet) for norm in inside]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    with undone(model, remove):
        yield


def back_through_norm(
    norm: Callable[[Tensor], Tensor],
    states: Float[Tensor, "row d_model"],
    gradient: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row d_model"]:
    """Takes a gradient back through a norm whose scale is held at what each state has it.

    With the scale held a norm is linear in the (centred) state x, so that f·x = g·(y - b) for the
    gradient f before it and g behind it, b its bias. The full gradient is f without some of its
    part along x: which part, that equation tells. For RMS norms and layer norms.
    """
    at = states.detach()[:, None].requires_grad_()
    with torch.enable_grad():
        normed = norm(at)
    (full,) = torch.autograd.grad(normed, at, gradient[:, None].to(normed))
    bias, centred = _bias(norm, at)
    x, y, full = centred(at.detach()), normed.detach().double(), full.double()
    missing = (gradient[:, None].double() * (y - bias) - full * x).sum(-1, keepdim=True)
    held = full + x * missing / x.square().sum(-1, keepdim=True)
    return held[:, 0].to(states)


def through_norm(
    norm: Callable[[Tensor], Tensor],
    states: Float[Tensor, "row d_model"],
    parts: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row d_model"]:
    """Takes a part of each state through a norm whose scale is held at what the state has it.

    Along the (centred) state such a norm gives its share of y - b; what is at right angles to it
    leaves the scale as it is, to first order, so that of this the norm's derivative tells.
    """
    at = states.detach()[:, None]
    bias, centred = _bias(norm, at)
    x, part = centred(at), centred(parts.detach()[:, None])
    share = (part * x).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True)
    y, across = torch.autograd.functional.jvp(norm, at, (part - share * x).to(at))
    return (share * (y.double() - bias) + across.double())[:, 0].to(states)


@torch.no_grad()
def _bias(
    norm: Callable[[Tensor], Tensor], states: Float[Tensor, "row 1 d_model"]
) -> tuple[Float[Tensor, "1 1 d_model"], Callable[[Tensor], Tensor]]:
    """A norm's bias, and what it takes away of a state before it scales, in float64."""
    flat = torch.zeros_like(states[:1])
    bias, of_ones = norm(flat).double(), norm(flat + 1).double()
    centres = torch.allclose(of_ones, bias, atol=1e-3)

    def centred(state: Tensor) -> Tensor:
        state = state.double()
        return state - state.mean(-1, keepdim=True) if centres else state

    return bias, centred

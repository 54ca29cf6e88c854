"""What is read off a state after the last layer: itself, normed, and the next token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safehead_tl.models import bridge
from safehead_tl.models.identity import Model, Site, has_hooks, is_bridge
from safehead_tl.models.undoing import undone
from safehead_tl.models.unembedding import HALF, unembed_in_float32
from safehead_tl.models.writes import back_through_norm, through_norm


def final_state(
    model: Model, resid: Float[Tensor, "*row d_model"], site: Site
) -> Float[Tensor, "*row d_model"]:
    """A state after the last layer as `site` has it; `final_norm` includes the norm's weight."""
    if site == "resid_post" or model.cfg.normalization_type is None:
        return resid
    normed: Tensor = model.ln_final(resid.reshape(-1, 1, resid.shape[-1]))
    return normed.reshape(resid.shape)


def next_token_log_probs(
    model: Model, resid: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """Log-probabilities of the next token from states after the last layer, in float64.

    A small KL is a small difference of large sums over the vocabulary: float32 loses it.
    """
    return next_token_logits(model, resid).log_softmax(-1)


def next_token_logits(
    model: Model, resid: Float[Tensor, "row d_model"], tokens: Int[Tensor, " token"] | None = None
) -> Float[Tensor, "row token"]:
    """Logits of the next token from states after the last layer, in float64.

    Of some `tokens`, which alone are unembedded then, or of all. Those of a half-precision model
    are not rounded to half precision: at a logit of 20 that would be steps of 0.06 or more.
    """
    if is_bridge(model):
        return bridge.logits(model, resid, tokens).double()
    state, unembed = final_state(model, resid, "final_norm"), model.unembed
    which: Tensor | slice = slice(None) if tokens is None else tokens.to(state.device)
    if has_hooks(unembed):
        logits = unembed(state[:, None, :])[:, 0, which]
    elif state.dtype in HALF:
        logits = unembed_in_float32(state, unembed.W_U[:, which], unembed.b_U[which])
    else:  # by hand: TransformerLens transposes the whole matrix in memory at each call
        logits = torch.addmm(unembed.b_U[which], state, unembed.W_U[:, which])
    logits = logits.double()
    cap = model.cfg.output_logits_soft_cap
    if cap is not None and cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return logits


def gradient_with_norm_held(
    model: Model,
    resid: Float[Tensor, "row d_model"],
    value: Callable[[Float[Tensor, "row d_model"]], Float[Tensor, " row"]],
) -> Float[Tensor, "row d_model"]:
    """The gradient of a value read off each state, the final norm's scale held at what it is."""
    at, normed = resid.detach().requires_grad_(), list[Tensor]()
    norm: nn.Module = getattr(model, "ln_final", nn.Identity())  # there may be none
    handle = norm.register_forward_hook(lambda norm, args, out: normed.append(out))
    with undone(model, handle.remove), torch.enable_grad():
        total = value(at).sum()
    (behind, *_) = [*normed, at]
    (gradient,) = torch.autograd.grad(total, behind)
    if behind is at:
        return gradient
    return back_through_norm(norm, resid, gradient.reshape(resid.shape))


def behind_final_norm(
    model: Model, resid: Float[Tensor, "row d_model"], parts: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_model"]:
    """What the final norm, its scale held at what each state has it, makes of a part of each."""
    return through_norm(getattr(model, "ln_final", nn.Identity()), resid, parts)


@torch.no_grad()
def unembedded(model: Model, parts: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """The logits that parts of states behind the final norm make by themselves, without its bias.

    A cap on logits acts on each part by itself, and so hardly.
    """
    states = torch.cat([parts, torch.zeros_like(parts[:1])])
    norm: nn.Module = getattr(model, "ln_final", nn.Identity())
    handle = norm.register_forward_hook(lambda norm, args, out: states.reshape(out.shape).to(out))
    with undone(model, handle.remove):
        logits = next_token_logits(model, states)
    return logits[:-1] - logits[-1]

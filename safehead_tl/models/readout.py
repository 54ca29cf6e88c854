"""What is read off a state after the last layer: itself, normed, and the next token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.models import bridge
from safehead_tl.models.identity import Model, Site, has_hooks, is_bridge
from safehead_tl.models.unembedding import HALF, unembed_in_float32


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

    A small KL is a small difference of large sums over the vocabulary: float32 loses it. And the
    logits of a half-precision model are not rounded to half precision: at a logit of 20 that
    would be steps of 0.06 or more.
    """
    if is_bridge(model):
        return bridge.logits(model, resid).double().log_softmax(-1)
    state, unembed = final_state(model, resid, "final_norm"), model.unembed
    if has_hooks(unembed):
        logits = unembed(state[:, None, :])[:, 0]
    elif state.dtype in HALF:
        logits = unembed_in_float32(state, unembed.W_U, unembed.b_U)
    else:  # by hand: TransformerLens transposes the whole matrix in memory at each call
        logits = torch.addmm(unembed.b_U, state, unembed.W_U)
    logits = logits.double()
    cap = model.cfg.output_logits_soft_cap
    if cap is not None and cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1)

"""Ablation computed a second time: on the plain Transformers model, in its attention function.

Shares no code with the package, and no TransformerLens.
"""

import torch
from torch.nn.functional import softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "ablated_for_tests"
_plan = {}


def _attention(module, query, key, value, attention_mask, scaling, softcap=None, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = attention_mask[..., : key.shape[-2]]
    pattern = softmax(scores + mask, -1)
    kind, heads = _plan["kind"], _plan["heads"]
    own = [head for layer, head in heads if layer == module.layer_idx]
    if kind == "undifferentiated":
        visible = (mask[:, 0] > -1e30).float()
        even = visible / visible.sum(-1, keepdim=True).clamp(min=1)
        for head in own:
            pattern[:, head] = even
    output = pattern @ value
    if kind in ("zero", "scaling"):
        for head in own:
            output[:, head] *= 0.0 if kind == "zero" else 1e-5
    return output.transpose(1, 2).contiguous(), pattern


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)


@torch.no_grad()
def logits(model, tokens, mask, kind=None, heads=()):
    """Logits of a Transformers model with heads ablated; `tokens` may be left-padded."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _plan.update(kind=kind, heads=[tuple(head) for head in heads])
    try:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return model(tokens, attention_mask=mask, position_ids=positions).logits
    finally:
        model.set_attn_implementation(before)


def divergence(original, ablated):
    """KL(original ‖ ablated) in nats, from logits."""
    target, found = original.double().log_softmax(-1), ablated.double().log_softmax(-1)
    return torch.nn.functional.kl_div(found, target, log_target=True, reduction="none").sum(-1)

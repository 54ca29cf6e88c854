"""Ablation computed a second time: on the plain Transformers model, in its attention function.

Shares no code with the package, and no TransformerLens.
"""

import re

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
    if getattr(module, "sinks", None) is not None:
        sinks = module.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        pattern = softmax(torch.cat([scores + mask, sinks], -1), -1)[..., :-1]
    else:
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


def _bloom_hooks(model, kind, heads):
    """BLOOM has no attention function: its dropout sees the pattern, its projection the outputs."""
    hooks = []
    for layer, head in heads if kind else ():
        attention = model.transformer.h[layer].self_attention

        def even(module, args, pattern, head=head):
            visible = (pattern[:, head] > 0).float()
            pattern[:, head] = visible / visible.sum(-1, keepdim=True).clamp(min=1)

        def scale(module, args, head=head):
            output = args[0].unflatten(-1, (model.config.n_head, -1)).clone()
            output[..., head, :] *= 0.0 if kind == "zero" else 1e-5
            return (output.flatten(-2),)

        if kind == "undifferentiated":
            hooks.append(attention.attention_dropout.register_forward_hook(even))
        else:
            hooks.append(attention.dense.register_forward_pre_hook(scale))
    return hooks


@torch.no_grad()
def logits(model, tokens, mask, kind=None, heads=()):
    """Logits of a Transformers model with heads ablated; `tokens` may be left-padded."""
    if model.config.model_type == "bloom":
        hooks = _bloom_hooks(model, kind, heads)
        try:
            return model(tokens, attention_mask=mask).logits
        finally:
            for hook in hooks:
                hook.remove()
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _plan.update(kind=kind, heads=[tuple(head) for head in heads])
    try:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return model(tokens, attention_mask=mask, position_ids=positions).logits
    finally:
        model.set_attn_implementation(before)


OUTPUTS = re.compile(
    r"\.(self_attn|attn|attention|self_attention)\.(o_proj|dense|c_proj|out_proj)$"
)


@torch.no_grad()
def logits_with_means(model, tokens, mask, heads):
    """Logits with heads' outputs replaced by their means, in front of the output projections."""
    projections = [module for name, module in model.named_modules() if OUTPUTS.search(name)]
    count = getattr(model.config, "num_attention_heads", None) or model.config.n_head
    means = {}

    def record(module, args):
        weight = mask[..., None].float()
        means[module] = (args[0] * weight).sum((0, 1)) / weight.sum()

    def replace(module, args):
        output = args[0].unflatten(-1, (count, -1)).clone()
        for layer, head in heads:
            if module is projections[layer]:
                output[..., head, :] = means[module].unflatten(-1, (count, -1))[head]
        return (output.flatten(-2),)

    for act in (record, replace):
        handles = [module.register_forward_pre_hook(act) for module in projections]
        found = logits(model, tokens, mask)
        for handle in handles:
            handle.remove()
    return found


def divergence(original, ablated):
    """KL(original ‖ ablated) in nats, from logits."""
    target, found = original.double().log_softmax(-1), ablated.double().log_softmax(-1)
    return torch.nn.functional.kl_div(found, target, log_target=True, reduction="none").sum(-1)

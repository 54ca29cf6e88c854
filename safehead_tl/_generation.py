"""Greedy generation for a left-padded batch, with an explicit mask and a KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from safehead_tl._errors import SafeheadError
from safehead_tl._forward import next_logits
from safehead_tl._models import Model
from safehead_tl._tokens import PromptBatch


@torch.no_grad()
def generate_greedy(
    model: Model, batch: PromptBatch, max_new_tokens: int, *, use_cache: bool = True
) -> list[str]:
    """Continues every prompt with its most likely tokens.

    Unlike `model.generate` it is told what is padding instead of guessing it from the pad token.
    Put it inside `ablated` to generate with heads ablated.

    Args:
        model: the model.
        batch: the prompts.
        max_new_tokens: stop after so many; a prompt also stops at the EOS token.
        use_cache: keep keys and values between steps. The texts are the same without.

    Returns:
        The continuations, without prompt and special tokens.
    """
    if max_new_tokens < 1:
        raise SafeheadError(f"max_new_tokens={max_new_tokens}: at least 1 token is generated")
    room = model.cfg.n_ctx - batch.tokens.shape[1]
    if max_new_tokens > room:
        raise SafeheadError(
            f"max_new_tokens={max_new_tokens} does not fit: the longest prompt leaves {room} of "
            f"the model's {model.cfg.n_ctx} positions"
        )
    tokenizer = model.tokenizer
    assert tokenizer is not None
    end = tokenizer.eos_token_id
    step = next_logits(model, len(batch.prompts), use_cache)
    tokens, mask = batch.tokens, batch.mask
    finished = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    new: list[Tensor] = []
    for _ in range(max_new_tokens):
        chosen = step(tokens, mask).argmax(-1)
        if end is not None:
            chosen = chosen.masked_fill(finished, end)
            finished |= chosen == end
        new.append(chosen)
        if finished.all():
            break
        tokens = torch.cat([tokens, chosen[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    texts: list[str] = tokenizer.batch_decode(torch.stack(new, 1), skip_special_tokens=True)
    return texts

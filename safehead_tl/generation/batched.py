"""Generation for a left-padded batch, with an explicit mask and a KV cache.

Each row may have its own heads ablated, so that a model and its variants answer in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safehead_tl.ablations import Ablation, must_fire, row_hooks
from safehead_tl.errors import SafeheadError
from safehead_tl.generation.decoding import Decoding
from safehead_tl.heads import Variant, own_group
from safehead_tl.models import (
    Hook,
    Model,
    embed,
    end_tokens,
    hooked,
    next_logits,
    next_token_log_probs,
    require_finite,
    run_to_last_state,
    why_not_finite,
)
from safehead_tl.prompts import PromptBatch
from safehead_tl.scan import Passes, Run, budget_of, even_slices, readable

ENDED = -1
"""Stands in rows of generated tokens behind their end."""

MAX_ROWS = 512
"""Most texts generated at once, unless told otherwise."""


@dataclass(frozen=True)
class Row:
    """One text to generate.

    Attributes:
        variant: which heads are ablated, as an index.
        prompt: which prompt.
        sample: which of its samples.
    """

    variant: int
    prompt: int
    sample: int


def generate_greedy(
    model: Model, batch: PromptBatch, max_new_tokens: int, *, use_cache: bool = True
) -> list[str]:
    """Continues every prompt with its most likely tokens; see `generate_rows`.

    Put it inside `ablated` to generate with heads ablated.
    """
    rows = [Row(0, prompt, 0) for prompt in range(len(batch.prompts))]
    decoding = Decoding(max_new_tokens)
    return decode(model, generate_rows(model, batch, rows, decoding, use_cache=use_cache))


@torch.no_grad()
def generate_rows(
    model: Model,
    batch: PromptBatch,
    rows: Sequence[Row],
    decoding: Decoding,
    variants: Sequence[Variant] = ((),),
    ablation: Ablation | None = None,
    *,
    use_cache: bool = True,
) -> Int[Tensor, "row step"]:
    """Generates one batch of texts.

    Unlike `model.generate` it is told what is padding instead of guessing it from the pad token.

    Args:
        model: the model.
        batch: the prompts.
        rows: what to generate.
        decoding: how.
        variants: the heads that are ablated, for each variant that rows name.
        ablation: what is done to them, prepared.
        use_cache: keep keys and values between steps. The tokens are the same without.

    Returns:
        The new tokens with the one that ended them, filled up with `ENDED`.

    Raises:
        SafeheadError: if the new tokens do not fit into the model's context, or a hook does not
            fire, or the logits of a prompt are not finite.
    """
    decoding = decoding.fitted(room_behind(model, batch))
    chosen = [row.prompt for row in rows]
    tokens, mask = batch.tokens[chosen], batch.mask[chosen]
    skip = int(mask.argmax(1).min())  # padding that none of these rows needs
    tokens, mask = tokens[:, skip:], mask[:, skip:]
    numbers = decoding.numbers([(row.prompt, row.sample) for row in rows])
    ends = torch.tensor(end_tokens(model), device=tokens.device)
    finished = torch.zeros(len(rows), dtype=torch.bool, device=tokens.device)
    infinite = torch.zeros_like(finished)
    new: list[Tensor] = []
    with must_fire(_row_hooks(model, rows, variants, ablation)) as hooks, hooked(model, hooks):
        step = next_logits(model, len(rows), use_cache)
        for number in range(decoding.steps):
            drawn = None if numbers is None else numbers[:, number]
            logits = step(tokens, mask)
            infinite |= ~(logits.isfinite().all(1) | finished)
            token = decoding.choose(logits, drawn)
            new.append(token.masked_fill(finished, ENDED))
            finished |= torch.isin(token, ends)
            if (finished | infinite).all():
                break
            tokens = torch.cat([tokens, token[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    if infinite.any():
        prompt = batch.prompts[chosen[int(infinite.nonzero()[0])]]
        raise SafeheadError(f"the logits of {prompt!r} are not finite: {why_not_finite(model)}")
    return torch.stack(new, 1)


def generate_fitted(
    model: Model,
    batch: PromptBatch,
    rows: Sequence[Row],
    decoding: Decoding,
    variants: Sequence[Variant],
    ablation: Ablation | None,
    passes: Passes,
) -> Int[Tensor, "row step"]:
    """Generates texts on the CPU, in smaller batches if memory runs out; see `generate_rows`."""

    def run() -> list[Tensor]:
        return [
            generate_rows(model, batch, rows[some], decoding, variants, ablation).cpu()
            for some in even_slices(len(rows), passes.rows)
        ]

    parts = passes.fitted(run)
    steps = max(part.shape[1] for part in parts)
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, steps - part.shape[1]), value=ENDED) for part in parts])


@torch.no_grad()
def next_rows(
    model: Model,
    batch: PromptBatch,
    rows: Sequence[Row],
    variants: Sequence[Variant],
    ablation: Ablation | None,
) -> Float[Tensor, "row vocab"]:
    """The next token's log-probabilities at the end of each row's prompt; see `generate_rows`."""
    chosen = [row.prompt for row in rows]
    mask = batch.mask[chosen]
    resid, positions = embed(model, batch.tokens[chosen], mask)
    with must_fire(_row_hooks(model, rows, variants, ablation)) as hooks:
        state = run_to_last_state(
            model, resid, mask, start=0, apart=False, hooks=hooks, positions=positions
        )
    names = [repr(batch.prompts[prompt]) for prompt in chosen]
    return require_finite(model, next_token_log_probs(model, state), names, "the logits")


def decode(model: Model, new: Int[Tensor, "row step"]) -> list[str]:
    """Generated tokens as texts, without special tokens."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    rows = [row[row != ENDED].tolist() for row in new]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return texts


def _row_hooks(
    model: Model, rows: Sequence[Row], variants: Sequence[Variant], ablation: Ablation | None
) -> list[Hook]:
    """Hooks with which each row of a batch has the heads of its variant and prompt ablated."""
    groups = [own_group(variants[row.variant], row.prompt) for row in rows]
    return [] if ablation is None else row_hooks(model, groups, ablation)


def room_behind(model: Model, *batches: PromptBatch) -> int:
    """How many positions of the model's context the longest prompt leaves."""
    return int(model.cfg.n_ctx) - max(batch.tokens.shape[1] for batch in batches)


def fitting_rows(model: Model, batch: PromptBatch, decoding: Decoding, run: Run) -> int:
    """How many texts are generated at once: as told, or as many as fit into memory."""
    width = batch.tokens.shape[1]
    a_row = text_bytes(model.cfg, width, decoding.steps)
    room = budget_of(run, batch.tokens.device) // 2
    if run.max_bytes is not None and room < a_row:
        raise SafeheadError(
            f"max_bytes={run.max_bytes} is too little: a text of {width} tokens and "
            f"{decoding.steps} new ones takes about {readable(2 * a_row)} beyond the "
            "model's weights"
        )
    if run.max_rows is not None and run.max_bytes is None:
        return run.max_rows
    return max(1, min(run.max_rows or MAX_ROWS, room // a_row))


def text_bytes(config: Any, width: int, steps: int) -> int:
    """Bytes that a text of so many tokens takes, and so many new ones."""
    size = torch.empty((), dtype=config.dtype).element_size()
    heads = config.n_key_value_heads or config.n_heads
    # Logits of all prompt positions, and keys and values, which are copied as they grow.
    logits = 2 * width * config.d_vocab
    return size * (logits + 2 * 2 * config.n_layers * heads * config.d_head * (width + steps))

"""Prompts as tokens: templated, encoded one by one, and left-padded with an explicit mask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safehead_tl._errors import SafeheadError
from safehead_tl._models import Model
from safehead_tl._templates import CHAT, fill, resolve_template


@dataclass(frozen=True)
class PromptBatch:
    """Prompts ready to run.

    Attributes:
        prompts: the texts, without template.
        template: the template's name or text, as it was given.
        tokens: ids, left-padded, so that every last position is a prompt's last token.
        mask: 1 where a token is, 0 where padding is.
    """

    prompts: tuple[str, ...]
    template: str
    tokens: Int[Tensor, "prompt pos"]
    mask: Int[Tensor, "prompt pos"]

    def describe(self) -> dict[str, Any]:
        """What a result's provenance keeps of the prompts: never their text."""
        digest = hashlib.sha256("\0".join(self.prompts).encode()).hexdigest()
        return {
            "template": self.template,
            "prompt_count": len(self.prompts),
            "prompts_hash": digest,
        }


def encode(model: Model, prompts: Sequence[str], template: str) -> PromptBatch:
    """Puts prompts into a template and encodes them.

    Each prompt is encoded by itself and padded afterwards, so padding never depends on what the
    tokenizer takes for a pad token. `chat` takes the ids of the tokenizer's own chat template,
    with its generation prompt; other templates get special tokens as `model.to_tokens` adds them.
    A second BOS token in front is dropped.

    Args:
        model: the model, with its tokenizer.
        prompts: one text or more.
        template: `"direct"`, `"paper"`, `"chat"` or a text with `{query}`.

    Raises:
        SafeheadError: if there is no tokenizer or chat template, no prompt, something that is no
            text, an unknown template, or a prompt longer than the model's context.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise SafeheadError("this model has no tokenizer: give it one with model.set_tokenizer")
    if isinstance(prompts, str):
        raise SafeheadError("prompts must be a list of texts: put a single one in brackets")
    prompts = tuple(prompts)
    if not prompts:
        raise SafeheadError("no prompts were given")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise SafeheadError(f"prompts[{number}] is {prompt!r}, not a text")
    text = resolve_template(template)
    if text == CHAT and not tokenizer.chat_template:
        raise SafeheadError(
            "this model's tokenizer has no chat template: use template='paper' or 'direct', or "
            "write the model's own format as a text with {query}"
        )
    rows = []
    for number, prompt in enumerate(prompts):
        ids = _chat_ids(tokenizer, prompt) if text == CHAT else _text_ids(model, fill(text, prompt))
        if len(ids) >= 2 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]
        if not 0 < len(ids) <= model.cfg.n_ctx:
            raise SafeheadError(
                f"prompts[{number}] has {len(ids)} tokens in its template; the model takes "
                f"1 to {model.cfg.n_ctx}"
            )
        rows.append(ids)
    width = max(len(ids) for ids in rows)
    tokens = torch.full((len(rows), width), tokenizer.pad_token_id or 0)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    device = model.cfg.device
    return PromptBatch(prompts, template, tokens.to(device), mask.to(device))


def _chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _text_ids(model: Model, text: str) -> list[int]:
    ids: list[int] = model.to_tokens(text, truncate=False, move_to_device=False)[0].tolist()
    return ids

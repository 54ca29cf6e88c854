"""Prompts as tokens: templated, encoded one by one, and left-padded with an explicit mask."""

from __future__ import annotations

import hashlib
import itertools
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from safehead_tl.errors import SafeheadError
from safehead_tl.models import Model, reading
from safehead_tl.prompts.chats import Chat
from safehead_tl.prompts.literal import SpecialTokens
from safehead_tl.prompts.loading import Prompts, prompt_texts
from safehead_tl.prompts.templates import (
    AUTO,
    CHAT,
    ChatTemplate,
    Prefilled,
    Template,
    describe_template,
    fill,
    own_template,
    resolve_template,
)

logger = logging.getLogger("safehead_tl")


@dataclass(frozen=True)
class PromptBatch:
    """Prompts ready to run.

    Attributes:
        prompts: the texts, without template.
        template: the template, as it was given; for `"auto"` the one that it meant.
        tokens: ids, left-padded, so that every last position is a prompt's last token.
        mask: 1 where a token is, 0 where padding is.
        special_tokens: how those that are written in prompts were read; see `load_model`.
        places: how many tokens a given answer has. All prompts stand here once for each, with so
            many of them behind as come before: first with none, then with one.
    """

    prompts: tuple[str, ...]
    template: Template
    tokens: Int[Tensor, "prompt pos"]
    mask: Int[Tensor, "prompt pos"]
    special_tokens: str = "special"
    places: int = 1

    @property
    def asked(self) -> PromptBatch:
        """The prompts alone, without a given answer's tokens."""
        some = slice(len(self.prompts) // self.places)
        return replace(
            self,
            prompts=self.prompts[some],
            tokens=self.tokens[some],
            mask=self.mask[some],
            places=1,
        )

    @property
    def shared_prefix(self) -> int:
        """How many tokens all prompts begin with; at least one of each is left over."""
        rows = zip(self.tokens.tolist(), self.mask.sum(1).tolist(), strict=True)
        columns = zip(*(row[len(row) - length : -1] for row, length in rows), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))

    def describe(self) -> dict[str, Any]:
        """What a result's provenance keeps of the prompts: never their text."""
        ids = self.tokens.masked_fill(self.mask == 0, -1).cpu().numpy().tobytes()
        return {
            **describe_template(self.template),
            "special_tokens": self.special_tokens,
            "prompt_count": len(self.asked.prompts),
            "prompts_hash": hashlib.sha256("\0".join(self.asked.prompts).encode()).hexdigest(),
            "tokens_hash": hashlib.sha256(ids).hexdigest(),
        }


def encode(
    model: Model, prompts: Prompts, template: Template, answer: str | None = None
) -> PromptBatch:
    """Puts prompts into a template and encodes them; at each place of an `answer`, if one is given.

    Each prompt is encoded by itself and padded afterwards, so padding never depends on what the
    tokenizer takes for a pad token. `chat` takes the ids of the tokenizer's own chat template,
    with its generation prompt, and no BOS token beside the one that it may write. Other templates
    get a BOS token in front if the model is set to have one (`cfg.default_prepend_bos`) and the
    template does not write it; never an EOS token at the end, which some tokenizers add. Special
    tokens that are written in prompts are read as the model was told (`load_model`).
    What an answer begins with is encoded by itself, and its ids put behind: those of the prompt
    stay what they are without it.

    Raises:
        SafeheadError: if there is no tokenizer or chat template, no prompt, something that is no
            text, an unknown template, a chat template that drops what it is given, or a prompt
            longer than the model's context, or an answer that the tokenizer does not know.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise SafeheadError("this model has no tokenizer: give it one with model.set_tokenizer")
    prompts = prompt_texts(prompts)
    around = template.template if isinstance(template, Prefilled) else template
    if around == AUTO:
        around = own_template(tokenizer)
        if around != CHAT:
            logger.warning(
                "this tokenizer has no chat template: prompts stand in template='paper', which "
                "says so without this word"
            )
    begun, said = list[int](), [] if answer is None else _answer_ids(tokenizer, answer)
    if isinstance(template, Prefilled):
        begun = _answer_ids(tokenizer, template.text)
        template = replace(template, template=around)
    else:
        template = around
    resolved = resolve_template(around)
    chats = isinstance(resolved, ChatTemplate)
    bos, adds_bos = tokenizer.bos_token_id, model.cfg.default_prepend_bos
    special, read_as = SpecialTokens(tokenizer), reading(model)
    literal = read_as == "literal"
    written = list(filter(None, map(special.first_in, prompts)))
    if written and not literal and resolved != "{query}":
        logger.warning(
            "%d of %d prompts hold a special token, such as %r, which is read as that token: to "
            "have its characters read, say load_model(..., special_tokens='literal')",
            len(written),
            len(prompts),
            written[0],
        )
    rows = []
    for number, prompt in enumerate(prompts):
        if literal and special.first_in(prompt):
            hidden = special.hide(prompt)
            if isinstance(prompt, Chat):
                hidden = prompt.mapped(special.hide)
            ids = special.encode(fill(resolved, tokenizer, hidden))
        else:
            whole = fill(resolved, tokenizer, prompt)
            ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        if not chats and adds_bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        ids = [*ids, *begun]
        if ids and max(ids) >= model.cfg.d_vocab:
            raise SafeheadError(
                f"prompts[{number}] has token {max(ids)}, and the model's vocabulary ends at "
                f"{model.cfg.d_vocab - 1}: this is not the tokenizer that it was trained with"
            )
        whole_length = len(ids) + len(said[1:])
        if not 0 < whole_length <= model.cfg.n_ctx:
            raise SafeheadError(
                f"prompts[{number}] has {whole_length} tokens in its template; the model takes "
                f"1 to {model.cfg.n_ctx}"
            )
        rows.append(ids)
    unk = tokenizer.unk_token_id  # may be the BOS token too
    unknown = sum(unk in ids[ids[0] == bos :] for ids in rows) if unk is not None else 0
    if unknown:
        logger.warning(
            "%d of %d prompts hold words that the model's tokenizer does not know",
            unknown,
            len(rows),
        )
    if chats and adds_bos and bos is not None and rows[0][0] != bos:
        logger.warning(
            "the chat template writes no BOS token, which this tokenizer puts in front of plain "
            "texts; the model gets what the template writes, as with Transformers. To have one, "
            "write the format as a text with {query}"
        )
    places = max(1, len(said))
    rows = [[*ids, *said[:place]] for place in range(places) for ids in rows]
    width = max(len(ids) for ids in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)  # padding is masked: any id serves
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    device = model.cfg.device
    every = prompts * places
    return PromptBatch(every, template, tokens.to(device), mask.to(device), read_as, places)


def _answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of an answer, or of what it begins with, as if the model had written them."""
    if not isinstance(text, str):
        raise SafeheadError(f"{text!r} is no answer's text")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise SafeheadError(f"an answer {text!r}: the model's tokenizer does not know such words")
    return ids

"""Special tokens that are written in a prompt, read as the characters they are written with."""

from __future__ import annotations

import copy
import re

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from safehead_tl.errors import SafeheadError

PROMPTS, TEMPLATES = "\ufdd0", "\ufdd1"
"""Around a special token's number: that of a prompt, that of a template. No text may hold these."""


class SpecialTokens:
    """The special tokens of a tokenizer, told apart by where they are written.

    A prompt's are hidden while it is put into the template. Then those that are left, the
    template's, get stand-ins, which a copy of the tokenizer knows as tokens, and the prompt's come
    back. So a text is encoded as a whole, as ever, and only what the template wrote is special.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.ids = {token.content: index for index, token in added.items() if token.special}
        longest_first = sorted(filter(None, self.ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._reader: PreTrainedTokenizerBase | None = None

    def first_in(self, text: str) -> str | None:
        """The first special token that is written in a text."""
        found = self._pattern.search(text)
        return found[0] if found else None

    def hide(self, prompt: str) -> str:
        """A prompt without the special tokens that are written in it."""
        if PROMPTS in prompt or TEMPLATES in prompt:
            raise SafeheadError(
                "a prompt holds U+FDD0 or U+FDD1, which are no characters: leave them out, or "
                "leave out special_tokens='literal'"
            )
        return self._numbered(prompt, PROMPTS)

    def encode(self, whole: str) -> list[int]:
        """The ids of a template with a hidden prompt in it."""
        added = self.tokenizer.added_tokens_decoder
        if self._reader is None:
            self._reader = copy.deepcopy(self.tokenizer)
            for number in self.ids.values():
                token, stand_in = added[number], f"{TEMPLATES}{number}{TEMPLATES}"
                told = {"lstrip": token.lstrip, "rstrip": token.rstrip, "normalized": False}
                self._reader.add_tokens([AddedToken(stand_in, special=False, **told)])
        text = re.sub(
            f"{PROMPTS}([0-9]+){PROMPTS}",
            lambda found: added[int(found[1])].content,
            self._numbered(whole, TEMPLATES),
        )
        told = {"add_special_tokens": False, "split_special_tokens": True}
        ids: list[int] = self._reader(text, **told)["input_ids"]
        tokens = self._reader.convert_ids_to_tokens(ids)
        return [
            int(token[1:-1]) if token.startswith(TEMPLATES) else index
            for index, token in zip(ids, tokens, strict=True)
        ]

    def _numbered(self, text: str, mark: str) -> str:
        return self._pattern.sub(lambda found: f"{mark}{self.ids[found[0]]}{mark}", text)

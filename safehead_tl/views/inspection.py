"""What a head does to a prompt: patterns, next tokens and answers, with heads ablated or not."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safehead_tl.ablations import Ablation, group_hooks, must_fire, resolve_ablation
from safehead_tl.generation import (
    Decoding,
    Row,
    decode,
    fitting_rows,
    generate_fitted,
    next_rows,
    room_behind,
)
from safehead_tl.heads import Group, Head
from safehead_tl.models import (
    Hook,
    Model,
    check_model,
    embed,
    hook_point,
    run_layers,
)
from safehead_tl.prompts import PromptBatch, Prompts, Template, encode
from safehead_tl.scan import Passes, Run, even_slices

ANSWER_TOKENS = 48
"""Most tokens of an answer, unless told otherwise."""

ROWS_AT_ONCE = 256
"""(heads, prompt) pairs in one pass for next tokens."""


@dataclass(frozen=True)
class Views:
    """A model on some prompts, and an ablation to look at it through.

    Attributes:
        model: the model.
        batch: the prompts.
        ablation: what is done to heads, prepared.
    """

    model: Model
    batch: PromptBatch
    ablation: Ablation

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: Prompts,
        template: Template = "auto",
        ablation: str | Ablation = "undifferentiated",
    ) -> Views:
        """Checks the inputs.

        Raises:
            SafeheadError: as `encode` and `resolve_ablation` do.
        """
        check_model(model)
        batch = encode(model, prompts, template)
        return cls(model, batch, resolve_ablation(ablation).prepare(model, batch))

    def tokens(self, prompt: int) -> list[str]:
        """A prompt's tokens as people can read them."""
        ids = self.batch.tokens[prompt][self.batch.mask[prompt].bool()]
        return [shown_token(self.model.tokenizer, token) for token in ids.tolist()]

    @torch.no_grad()
    def patterns(self, prompt: int) -> Float[Tensor, "layer head query key"]:
        """Every head's attention on a prompt; nothing is ablated."""
        return torch.stack(
            [self._look(layer, stream, ()) for layer, stream in self._streams(prompt)]
        )

    @torch.no_grad()
    def ablated_patterns(self, prompt: int) -> Float[Tensor, "layer head query key"]:
        """Every head's attention with that head alone ablated."""
        found = []
        for layer, stream in self._streams(prompt):
            alone = [(Head(layer, head),) for head in range(self.model.cfg.n_heads)]
            if self.ablation.separable(self.model):  # then all at once is each alone
                found.append(self._look(layer, stream, tuple(head for (head,) in alone)))
            else:
                rows = [self._look(layer, stream, group)[group[0].head] for group in alone]
                found.append(torch.stack(rows))
        return torch.stack(found)

    @torch.no_grad()
    def patterns_with(
        self, prompt: int, heads: Sequence[Head], group: Group
    ) -> Float[Tensor, "shown query key"]:
        """The attention of some heads, with a group ablated.

        Args:
            prompt: which prompt.
            heads: whose attention to show.
            group: what to ablate.
        """
        start = self._start(prompt)
        seen: dict[int, Tensor] = {}
        layers = sorted({head.layer for head in heads})
        hooks = [*group_hooks(self.model, group, self.ablation)]
        hooks = [hook for hook in hooks if int(hook[0].split(".")[1]) <= layers[-1]]
        hooks += [_looker(layer, seen) for layer in layers]
        with must_fire(hooks) as counted:
            start.run(self.model, 0, layers[-1] + 1, counted)
        return torch.stack([seen[head.layer][head.head] for head in heads])

    @torch.no_grad()
    def next_tokens(self, groups: Sequence[Group]) -> Float[Tensor, "group prompt vocab"]:
        """Log-probabilities of the next token at the end of each prompt, with groups ablated."""
        count = len(self.batch.prompts)
        rows = [Row(group, prompt, 0) for group in range(len(groups)) for prompt in range(count)]
        found = [
            next_rows(self.model, self.batch, rows[some], groups, self.ablation).float().cpu()
            for some in even_slices(len(rows), ROWS_AT_ONCE)
        ]
        return torch.cat(found).unflatten(0, (len(groups), count))

    def answers(
        self, groups: Sequence[Group], max_new_tokens: int | None, run: Run = Run()
    ) -> list[list[str]]:
        """Greedy answers to each prompt, with groups ablated."""
        count = len(self.batch.prompts)
        decoding, passes = answering(self.model, self.batch, max_new_tokens, run)
        rows = [Row(group, prompt, 0) for group in range(len(groups)) for prompt in range(count)]
        new = generate_fitted(self.model, self.batch, rows, decoding, groups, self.ablation, passes)
        texts = decode(self.model, new)
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def _start(self, prompt: int) -> _Stream:
        real = self.batch.mask[prompt].bool()
        tokens = self.batch.tokens[prompt][real][None]
        mask = torch.ones_like(tokens)
        return _Stream(*embed(self.model, tokens, mask), mask)

    def _streams(self, prompt: int) -> Iterator[tuple[int, _Stream]]:
        """The residual stream before each layer."""
        stream = self._start(prompt)
        for layer in range(self.model.cfg.n_layers):
            yield layer, stream
            stream = replace(stream, resid=stream.run(self.model, layer, layer + 1, ()))

    def _look(self, layer: int, stream: _Stream, group: Group) -> Float[Tensor, "head query key"]:
        seen: dict[int, Tensor] = {}
        hooks = [*group_hooks(self.model, group, self.ablation), _looker(layer, seen)]
        with must_fire(hooks) as counted:
            stream.run(self.model, layer, layer + 1, counted)
        return seen[layer]


@dataclass(frozen=True)
class _Stream:
    """The residual stream of one prompt before a layer."""

    resid: Float[Tensor, "1 pos d_model"]
    positions: Float[Tensor, "1 pos d_model"] | None
    mask: Int[Tensor, "1 pos"]

    def run(self, model: Model, start: int, stop: int, hooks: Sequence[Hook]) -> Tensor:
        return run_layers(
            model, self.resid, self.mask, start=start, stop=stop, hooks=hooks,
            positions=self.positions,
        )  # fmt: skip


def answering(
    model: Model, batch: PromptBatch, max_new_tokens: int | None, run: Run
) -> tuple[Decoding, Passes]:
    """How answers are generated, and how many at once.

    Raises:
        SafeheadError: if they do not fit into the model's context or into memory.
    """
    decoding = Decoding(max_new_tokens).fitted(room_behind(model, batch), ANSWER_TOKENS)
    return decoding, Passes(fitting_rows(model, batch, decoding, run))


def _looker(layer: int, seen: dict[int, Tensor]) -> Hook:
    def look(pattern: Tensor, hook: Any) -> None:
        seen[layer] = pattern[0].float().cpu()

    return hook_point(layer, "pattern"), look


def shown_token(tokenizer: Any, token: int) -> str:
    """A token as people can read it: spaces, newlines and bytes have signs of their own.

    A space becomes `·`, a newline `⏎`, a tab `⇥`; what is no text by itself is shown as its bytes
    or code points. Special tokens are as they are.
    """
    piece = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token]))
    if token in tokenizer.all_special_ids:
        return piece
    if not text or "\ufffd" in text:
        text = piece  # part of a character, or nothing: the tokenizer's own spelling
    elif piece.startswith("▁") and not text.startswith(" "):
        text = f" {text}"  # decoding alone strips the space that a word begins with
    signs = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"}
    return "".join(
        signs.get(char, char if _visible(char) else f"<U+{ord(char):04X}>") for char in text
    )


def _visible(char: str) -> bool:
    return unicodedata.category(char)[0] not in "CZ"

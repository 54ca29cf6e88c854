"""What a head does to a prompt: patterns, next tokens and answers, with heads ablated or not."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
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
    room_behind,
)
from safehead_tl.heads import Group, Head
from safehead_tl.models import (
    Hook,
    Model,
    behind_final_norm,
    check_model,
    embed,
    hook_point,
    next_token_log_probs,
    record_writes,
    require_finite,
    run_layers,
)
from safehead_tl.prompts import PromptBatch, Prompts, Template, encode
from safehead_tl.scan import Passes, Run, Search, weights_held_fixed

ANSWER_TOKENS = 48
"""Most tokens of an answer, unless told otherwise."""

CELLS = 16
"""Rows of a thumbnail."""


@dataclass(frozen=True)
class Look:
    """What one pass over a prompt shows.

    Attributes:
        last_rows: where every head looks from the last position.
        thumbnails: every head's pattern, made small (`shrunk`).
        patterns: the whole patterns of chosen heads.
        streams: the residual stream before each layer that has one of them.
        state: the last position's state behind the last layer that was run.
    """

    last_rows: Float[Tensor, "layer head key"]
    thumbnails: Float[Tensor, "layer head cell"]
    patterns: dict[Head, Float[Tensor, "query key"]]
    streams: dict[int, Stream]
    state: Float[Tensor, "1 d_model"]


@dataclass(frozen=True)
class Views:
    """A model on some prompts, and an ablation, which is prepared, to look at it through."""

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
        shown: int | None = None,
    ) -> Views:
        """Checks the inputs; the ablation is made ready for all prompts, the first are shown.

        Raises:
            SafeheadError: as `encode` and `resolve_ablation` do.
        """
        check_model(model)
        batch = encode(model, prompts, template)
        prepared = resolve_ablation(ablation).prepare(model, batch)
        return cls(model, encode(model, batch.prompts[:shown], batch.template), prepared)

    def tokens(self, prompt: int) -> list[str]:
        """A prompt's tokens as people can read them."""
        ids = self.batch.tokens[prompt][self.batch.mask[prompt].bool()]
        return [shown_token(self.model.tokenizer, token) for token in ids.tolist()]

    @torch.no_grad()
    def look(
        self, prompt: int, heads: Sequence[Head], group: Group = (), stop: int | None = None
    ) -> Look:
        """Runs a prompt once, to before layer `stop`, and keeps the whole patterns of `heads`."""
        rows, small, patterns = dict[int, Tensor](), dict[int, Tensor](), dict[Head, Tensor]()
        streams, stream = dict[int, Stream](), self._start(prompt)
        ablation, stop = self._ablation(prompt), self.model.cfg.n_layers if stop is None else stop

        def see(layer: int, pattern: Tensor, hook: Any) -> None:
            seen = pattern[0].float()
            rows[layer], small[layer] = seen[:, -1].cpu(), shrunk(seen)
            patterns.update({head: seen[head.head].cpu() for head in heads if head.layer == layer})

        chosen = sorted({head.layer for head in heads})
        for first, behind in pairwise([0, *chosen, stop]):
            if first in chosen:
                streams[first] = stream
            own = tuple(head for head in group if first <= head.layer < behind)
            hooks = group_hooks(self.model, own, ablation)
            hooks += [
                (hook_point(each, "pattern"), partial(see, each)) for each in range(first, behind)
            ]
            with must_fire(hooks) as counted:
                stream = replace(stream, resid=stream.run(self.model, first, behind, counted))
        return Look(
            torch.stack([*rows.values()]),
            torch.stack([*small.values()]),
            {head: patterns[head] for head in heads},
            streams,
            stream.resid[:, -1],
        )

    @torch.no_grad()
    def ablated_patterns(self, prompt: int, seen: Look) -> dict[Head, Float[Tensor, "query key"]]:
        """The attention of the heads that were chosen in a look, each with itself alone ablated."""
        if self.ablation.keeps_patterns:
            return seen.patterns
        found: dict[Head, Tensor] = {}
        for layer, stream in seen.streams.items():
            own = tuple(head for head in seen.patterns if head.layer == layer)
            # What is separable does to each, with all at once, what it does to it alone.
            groups = [own] if self.ablation.separable(self.model) else [(head,) for head in own]
            for group in groups:
                pattern = self._pattern(layer, stream, group, self._ablation(prompt))
                found.update({head: pattern[head.head] for head in group})
        return {head: found[head] for head in seen.patterns}

    def patterns_with(
        self, prompt: int, heads: Sequence[Head], group: Group
    ) -> Float[Tensor, "shown query key"]:
        """The attention of some heads, with a group ablated; layers behind them are not run."""
        stop = max(head.layer for head in heads) + 1
        return torch.stack([*self.look(prompt, heads, group, stop).patterns.values()])

    def written(self, seen: Look) -> Float[Tensor, "head d_model"]:
        """What each head that was chosen in a look adds to the last state, behind the final norm.

        The norm's scale is held at what it is.

        Raises:
            SafeheadError: if a layer writes by more than attention and MLP.
        """
        added: dict[Head, Tensor] = {}
        with weights_held_fixed(self.model):
            for layer, stream in seen.streams.items():
                run = partial(stream.run, self.model, layer, layer + 1)
                _, writes = record_writes(self.model, layer, run, stream.resid)
                own = (head for head in seen.patterns if head.layer == layer)
                added |= {head: writes.of_head(head.head).to(seen.state) for head in own}
        parts = torch.cat([added[head] for head in seen.patterns])
        return behind_final_norm(self.model, seen.state.expand(len(parts), -1), parts)

    def alone(
        self, heads: Sequence[Head], run: Run = Run()
    ) -> Float[Tensor, "head prompt d_model"]:
        """The last states of the prompts, with each of these heads ablated alone."""
        batch, how = self.batch, replace(run, run_dir=None, on=None)
        search = Search.start(self.model, batch.prompts, batch.template, self.ablation, how)
        return search.each(heads)

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

    def _ablation(self, prompt: int) -> Ablation:
        return self.ablation.on(torch.tensor([prompt]))

    def _start(self, prompt: int) -> Stream:
        real = self.batch.mask[prompt].bool()
        tokens = self.batch.tokens[prompt][real][None]
        mask = torch.ones_like(tokens)
        return Stream(*embed(self.model, tokens, mask), mask)

    def _pattern(
        self, layer: int, stream: Stream, group: Group, ablation: Ablation
    ) -> Float[Tensor, "head query key"]:
        seen: list[Tensor] = []
        keep = (hook_point(layer, "pattern"), lambda pattern, hook: seen.append(pattern[0]))
        with must_fire([*group_hooks(self.model, group, ablation), keep]) as counted:
            stream.run(self.model, layer, layer + 1, counted)
        return seen[0].float().cpu()


@dataclass(frozen=True)
class Stream:
    """The residual stream of one prompt before a layer."""

    resid: Float[Tensor, "1 pos d_model"]
    positions: Float[Tensor, "1 pos d_model"] | None
    mask: Int[Tensor, "1 pos"]

    def run(self, model: Model, start: int, stop: int, hooks: Sequence[Hook]) -> Tensor:
        """Runs some layers, and gives the stream behind them."""
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


def log_probs(model: Model, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """The next token's log-probabilities from last states, on the CPU.

    Raises:
        SafeheadError: if the model's numbers are not finite.
    """
    logs = next_token_log_probs(model, states.to(model.cfg.device)).cpu()
    return require_finite(model, logs, ["a prompt"] * len(logs), "the next token's probabilities")


def divergence(plain: Float[Tensor, " vocab"], moved: Float[Tensor, " vocab"]) -> float:
    """KL of what would come next from what does, in nats."""
    return float((plain.exp() * (plain - moved)).sum().clamp(min=0))


def shrunk(patterns: Float[Tensor, "head query key"]) -> Float[Tensor, "head cell"]:
    """Patterns made small: the lower triangle, row by row, of means over sixteenths of a prompt."""
    length = patterns.shape[-1]
    edges, places = torch.arange(CELLS + 1) * length / CELLS, torch.arange(length)
    inside = torch.minimum(edges[1:, None], places + 1) - torch.maximum(edges[:-1, None], places)
    shares = (inside.clamp(min=0) * CELLS / length).to(patterns)
    rows, columns = torch.tril_indices(CELLS, CELLS)
    return (shares @ patterns @ shares.T).cpu()[:, rows, columns]


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

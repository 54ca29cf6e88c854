"""What the widget computes: requests in, numbers, tokens and sentences out, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Group, Head
from safehead_tl.judges import Judge
from safehead_tl.models import Model, single_thread_if_tiny
from safehead_tl.prompts import PromptBatch, encode
from safehead_tl.results import HeadScores
from safehead_tl.views.choices import LARGEST, SMALLEST, AblationChoice, choices_with
from safehead_tl.views.inspection import Views, divergence, log_probs
from safehead_tl.views.maps import map_data
from safehead_tl.views.packing import TokenTable, packed, short, small_patterns, triangle
from safehead_tl.views.page.words import lead, pattern_note
from safehead_tl.views.verdicts import judged_answers
from safehead_tl.views.widget.request import Column, Request

MOST_TOKENS = 512
"""Tokens of a prompt whose attention is shown, the last ones: a pattern is their square."""

LOOKED_AT = 8
"""Prompts, the first ones, over which small patterns are averaged."""

NAMES = "ABC"
"""Of columns."""


@dataclass(frozen=True)
class _Seen:
    """What one pass of a prompt shows: log-probabilities of the next token; attention, packed."""

    log_probs: Float[Tensor, " vocab"]
    patterns: dict[str, str]
    last_rows: str


@dataclass(frozen=True)
class Explorer:
    """A model on some prompts, ready to be asked what ablating heads does; as `explore` was told.

    Mean ablation takes its means over the given prompts, whatever is looked at.
    """

    model: Model
    scores: HeadScores
    batch: PromptBatch
    choices: tuple[AblationChoice, ...]
    first: Mapping[str, Any]
    marked: tuple[Head, ...]
    marked_as: str
    max_new_tokens: int | None
    judge: Judge | None
    _prepared: dict[tuple[str, float], Ablation] = field(default_factory=dict, repr=False)
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def page(self) -> dict[str, Any]:
        """What stays as it is: the heatmap, and what there is to choose from.

        Costs a pass of each of the first eight prompts.
        """
        views = Views(self.model, self.batch, self.choices[0].make(SMALLEST))
        with single_thread_if_tiny(self.model):
            some = range(len(self.batch.prompts))[:LOOKED_AT]
            small = [views.look(prompt, ()).thumbnails for prompt in some]
        return {
            **map_data([self.scores], self.marked, self.marked_as),
            "lead": lead(self.scores),
            "scored": self.first["columns"][0]["ablation"],
            "prompts": list(self.batch.prompts),
            "ablations": [
                {
                    "key": choice.key,
                    "label": choice.label,
                    "scaled": choice.scaled,
                    "note": pattern_note(choice.make(SMALLEST)),
                }
                for choice in self.choices
            ],
            "smallest": SMALLEST,
            "largest": LARGEST,
            "generates": self.max_new_tokens != 0,
            "thumbnails": small_patterns(small),
        }

    def answer(self, asked: Any) -> dict[str, Any]:
        """What to show for a request; what went wrong is said in `error`, in a sentence.

        Nothing is raised: in a notebook it would end in the kernel's log, where no one looks.
        Costs a pass for each column and prompt that was not shown before, and of answers one for
        each token.
        """
        size = (self.model.cfg.n_layers, self.model.cfg.n_heads)
        try:
            request = Request.read(asked, size, self.choices, self.batch.prompts)
            with single_thread_if_tiny(self.model):
                return self._show(request)
        except SafeheadError as error:
            return {"error": f"This cannot be shown: {str(error).rstrip('.')}."}
        except Exception as error:  # whatever a model may raise, such as a lack of memory
            return {"error": f"{type(error).__name__} while computing: {str(error).rstrip('.')}."}

    @torch.no_grad()
    def _show(self, request: Request) -> dict[str, Any]:
        fresh: dict[Hashable, Any] = {}

        def once(key: Hashable, compute: Callable[[], Any]) -> Any:
            """What was computed for this request or the one before it is not computed again."""
            if key not in fresh:
                fresh[key] = self._kept[key] if key in self._kept else compute()
            return fresh[key]

        columns = [self._shown(column, request, once) for column in request.columns]
        self._kept.clear()
        self._kept.update(fresh)
        told = [
            _status(column, found["kl"])
            for column, found in zip(request.columns, columns, strict=True)
        ]
        if len(told) > 1:
            told = [f"{name}: {each}" for name, each in zip(NAMES, told, strict=False)]
        shown = [str(head) for head in request.shown]
        return {"columns": columns, "shown": shown, "status": " ".join(told)}

    def _shown(
        self, column: Column, request: Request, once: Callable[[Hashable, Callable[[], Any]], Any]
    ) -> dict[str, Any]:
        """One column: its prompt with its heads ablated."""
        views, text, ablation = self.views(column, [column.text]), column.text, column.ablation

        def seen(group: Group) -> _Seen:
            key = (text, request.shown, group, ablation if group else None)
            found: _Seen = once(key, lambda: self._see(column, views, request.shown, group))
            return found

        plain, moved = seen(()), seen(column.heads)
        tokens = views.tokens(0)
        found: dict[str, Any] = {
            "heads": [str(head) for head in column.heads],
            "ablation": column.choice.key,
            "epsilon": column.epsilon,
            "words": column.words,
            "prompt": column.prompt,
            "text": text,
            "tokens": tokens[-MOST_TOKENS:],
            "next": TokenTable(self.model.tokenizer).named(moved.log_probs),
            "kl": short(divergence(plain.log_probs, moved.log_probs)),
            "notes": _notes(self.model, tokens),
            "patterns": moved.patterns,
            "lastRows": moved.last_rows,
        }
        if request.generate:
            key = ("answer", text, column.heads, ablation if column.heads else None)
            answers = once(key, lambda: views.answers([column.heads], self.max_new_tokens)[0])
            found |= judged_answers(self.judge, [text], answers)[0]
        return found

    def _see(self, column: Column, views: Views, shown: Sequence[Head], group: Group) -> _Seen:
        number = 0
        if column.prompt is not None:  # among the others, which its ablation may tell it from
            number, views = column.prompt, Views(self.model, self.batch, views.ablation)
        elif group and views.ablation.by_prompt:
            raise SafeheadError(of_given(column))
        found = views.look(number, shown, group)
        some = slice(-MOST_TOKENS, None)
        return _Seen(
            log_probs(self.model, found.state)[0],
            {str(head): triangle(each[some, some]) for head, each in found.patterns.items()},
            packed(found.last_rows[..., some]),
        )

    def views(self, column: Column, texts: Sequence[str]) -> Views:
        """Prompts, through a column's ablation, which was made ready on all the given ones."""
        if column.ablation not in self._prepared:
            made = column.choice.make(column.epsilon)
            self._prepared[column.ablation] = made.prepare(self.model, self.batch)
        batch = encode(self.model, texts, self.batch.template)
        return Views(self.model, batch, self._prepared[column.ablation])


def beginning(
    scores: HeadScores, ablation: Ablation
) -> tuple[tuple[AblationChoice, ...], dict[str, Any]]:
    """The ablations to choose from, and what is shown at first: the highest head, and none."""
    choices, chosen, epsilon = choices_with(ablation)
    top = [str(head) for head, _ in scores.top(1)]
    column = {"ablation": chosen.key, "epsilon": epsilon, "prompt": 0, "text": ""}
    columns = [{"heads": heads, **column} for heads in ([], top)]
    return choices, {"columns": columns, "shown": top, "generate": False}


def of_given(column: Column) -> str:
    """Why a column's ablation cannot be seen on one's own prompt."""
    return f"{column.words} is of the given prompts: choose one of them"


def _status(column: Column, kl: float) -> str:
    """What is done in a column, and how far it moves the next token."""
    if not column.heads:
        return "No head is ablated."
    count = "1 head" if len(column.heads) == 1 else f"{len(column.heads)} heads"
    heads = " ".join(map(str, column.heads))
    return f"{count} ablated: {column.words}, {heads}. KL {kl:.3g} nats."


def _notes(model: Model, tokens: Sequence[str]) -> list[str]:
    """What else there is to know."""
    notes = []
    unknown = getattr(model.tokenizer, "unk_token", None)
    if unknown in tokens[1:]:  # the first may be the same token, as the beginning
        notes.append(f"The tokenizer reads words that it does not know as {unknown}.")
    if len(tokens) > MOST_TOKENS:
        notes.append(f"Attention is shown among the last {MOST_TOKENS} of {len(tokens)} tokens.")
    return notes

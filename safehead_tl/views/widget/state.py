"""What the widget computes: requests in, numbers, tokens and sentences out, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.figures import UNITS, head_words
from safehead_tl.heads import Head
from safehead_tl.models import Model, single_thread_if_tiny
from safehead_tl.prompts import PromptBatch, Prompts, Template, encode
from safehead_tl.results import HeadScores
from safehead_tl.views.inspection import Views
from safehead_tl.views.page.data import TokenTable
from safehead_tl.views.page.words import lead
from safehead_tl.views.widget.choices import LARGEST, SMALLEST, AblationChoice, choices_with
from safehead_tl.views.widget.request import Request

MOST_PATTERNS = 8
"""Heads whose attention is shown at once; more can be ablated."""

MOST_TOKENS = 96
"""Tokens of a prompt whose attention is shown, the last ones: a pattern is their square."""


@dataclass(frozen=True)
class Explorer:
    """A model on some prompts, ready to be asked what ablating heads does.

    Attributes:
        model: the model.
        scores: what the heatmap shows.
        batch: the given prompts. Mean ablation takes its means over them, whatever is looked at.
        choices: the ablations to choose from.
        first: what is shown at first.
        marked: heads to mark in the heatmap.
        marked_as: what they are.
        max_new_tokens: length of answers; 0: none; `None`: 48, or what fits.
    """

    model: Model
    scores: HeadScores
    batch: PromptBatch
    choices: tuple[AblationChoice, ...]
    first: Mapping[str, Any]
    marked: tuple[Head, ...]
    marked_as: str
    max_new_tokens: int | None
    _prepared: dict[tuple[str, float], Ablation] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: Prompts,
        scores: HeadScores,
        template: Template,
        ablation: Ablation,
        marked: tuple[Head, ...],
        marked_as: str,
        max_new_tokens: int | None,
    ) -> Explorer:
        """Begins with the highest head ablated, on the first prompt."""
        choices, chosen, epsilon = choices_with(ablation)
        first = {
            "heads": [str(head) for head, _ in scores.top(1)],
            "ablation": chosen.key,
            "epsilon": epsilon,
            "prompt": 0,
            "text": "",
            "generate": False,
        }
        batch = encode(model, prompts, template)
        return cls(model, scores, batch, choices, first, marked, marked_as, max_new_tokens)

    def page(self) -> dict[str, Any]:
        """What stays as it is: the heatmap, and what there is to choose from."""
        layers, heads = self.scores.values.shape
        numbers = self.scores.values.flatten().tolist()
        return {
            "shape": {"layers": layers, "heads": heads, "kvSize": self.scores.heads_per_kv_group},
            "unit": UNITS[self.scores.measure].rpartition(", ")[2],
            "scale": f"Brightness: {UNITS[self.scores.measure]}.",
            "scores": [None if math.isnan(value) else float(f"{value:.4g}") for value in numbers],
            "ranked": [head.layer * heads + head.head for head, _ in self.scores.ranked()],
            "marked": [head.layer * heads + head.head for head in self.marked],
            "markedAs": self.marked_as,
            "lead": lead(self.scores),
            "prompts": list(self.batch.prompts),
            "ablations": [
                {"key": choice.key, "label": choice.label, "scaled": choice.scaled}
                for choice in self.choices
            ],
            "smallest": SMALLEST,
            "largest": LARGEST,
            "generates": self.max_new_tokens != 0,
        }

    def answer(self, asked: Any) -> dict[str, Any]:
        """What to show for a request; what went wrong is said in `error`, in a sentence.

        Nothing is raised: in a notebook it would end in the kernel's log, where no one looks.
        Costs four passes, and one for each token of answers.
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
        views, group = self._views(request), request.heads
        tokens, shown = views.tokens(0), group[:MOST_PATTERNS]
        words = request.choice.words(request.epsilon)
        plain, moved = views.next_tokens([(), group])[:, 0]
        if plain.isnan().any() or moved.isnan().any():
            raise SafeheadError(
                "the next token's probabilities come out as no numbers: load the model with "
                "dtype='bfloat16' or 'float32'"
            )
        kl = (plain.exp() * (plain - moved)).sum().clamp(min=0).item()
        notes = _notes(self.model, tokens, group)
        if group:
            count = "1 head" if len(group) == 1 else f"{len(group)} heads"
            status = f"{count} ablated: {words}, {' '.join(map(str, group))}. KL {kl:.3g} nats."
        else:
            status = "No head is ablated: choose heads in the heatmap."
        found: dict[str, Any] = {
            "heads": [str(head) for head in group],
            "ablation": request.choice.key,
            "epsilon": request.epsilon,
            "words": words,
            "status": status,
            "notes": notes,
            "prompt": request.prompt,
            "text": request.text,
            "tokens": tokens[-MOST_TOKENS:],
            "patterns": [],
            "next": [_likeliest(self.model, plain), _likeliest(self.model, moved)],
            "kl": kl,
        }
        if shown:
            before, after = (views.patterns_with(0, shown, heads) for heads in ((), group))
            found["patterns"] = [
                {"head": str(head), "before": _rows(before[place]), "after": _rows(after[place])}
                for place, head in enumerate(shown)
            ]
        if request.generate:
            groups = [(), group] if group else [()]
            found["answers"] = [texts[0] for texts in views.answers(groups, self.max_new_tokens)]
        return found

    def _views(self, request: Request) -> Views:
        """One prompt, through an ablation that was made ready on all the given ones."""
        key = (request.choice.key, request.epsilon if request.choice.scaled else 1.0)
        if key not in self._prepared:
            made = request.choice.make(request.epsilon)
            self._prepared[key] = made.prepare(self.model, self.batch)
        batch = encode(self.model, [request.text], self.batch.template)
        return Views(self.model, batch, self._prepared[key])


def _rows(pattern: Float[Tensor, "query key"]) -> list[list[float]]:
    """The lower triangle of the last tokens, row by row, to three digits."""
    rows = pattern[-MOST_TOKENS:, -MOST_TOKENS:].double().round(decimals=3).tolist()
    return [row[: number + 1] for number, row in enumerate(rows)]


def _likeliest(model: Model, log_probs: Float[Tensor, " vocab"]) -> list[tuple[str, float]]:
    table = TokenTable(model.tokenizer)
    return [(table.texts[place], share) for place, share in table.likeliest(log_probs)]


def _notes(model: Model, tokens: Sequence[str], group: Sequence[Head]) -> list[str]:
    """What else there is to know."""
    notes = []
    unknown = getattr(model.tokenizer, "unk_token", None)
    if unknown in tokens[1:]:  # the first may be the same token, as the beginning
        notes.append(f"The tokenizer reads words that it does not know as {unknown}.")
    if len(group) > MOST_PATTERNS:
        notes.append(f"Attention is shown of {head_words(group[:MOST_PATTERNS])} only.")
    if len(tokens) > MOST_TOKENS:
        notes.append(f"Attention is shown among the last {MOST_TOKENS} of {len(tokens)} tokens.")
    return notes

"""What the report's page is given: scores, patterns, next tokens and answers, made small."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from safehead_tl.figures import UNITS
from safehead_tl.heads import Head
from safehead_tl.models import no_bars
from safehead_tl.results import HeadScores
from safehead_tl.scan import Run
from safehead_tl.views.inspection import Views, shown_token

NEXT_TOKENS = 10


@dataclass
class TokenTable:
    """Tokens by number: the page holds each text once."""

    tokenizer: Any
    texts: list[str] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        """The number of a token's text."""
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]

    def likeliest(self, log_probs: Float[Tensor, " vocab"]) -> list[tuple[int, float]]:
        """The likeliest tokens as pairs of number and probability."""
        best = log_probs.exp().topk(min(NEXT_TOKENS, len(log_probs)))
        return [
            (self.place(shown_token(self.tokenizer, token)), round(share, 5))
            for share, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def page_data(
    views: Views,
    scores: HeadScores,
    panels: Sequence[Head],
    marked: Sequence[Head],
    marked_as: str,
    max_new_tokens: int | None,
    run: Run,
) -> dict[str, Any]:
    """Everything that the page's script draws.

    Args:
        views: the model on the prompts to show.
        scores: a score for every head.
        panels: the heads that get whole patterns, next tokens and answers.
        marked: heads to mark.
        marked_as: what they are.
        max_new_tokens: length of answers; 0: none; `None`: 48, or what fits.
        run: how it runs.
    """
    layers, heads = scores.values.shape
    table = TokenTable(views.model.tokenizer)
    names = [str(head) for head in panels]
    groups = [(), *((head,) for head in panels)]
    after = views.next_tokens(groups)
    answers = None if max_new_tokens == 0 else views.answers(groups, max_new_tokens, run)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    prompts, rows = [], []
    numbers = range(len(views.batch.prompts))
    for prompt in tqdm(
        numbers, desc="report, prompts", unit="prompt", disable=no_bars(run.progress)
    ):
        before, ablated = views.patterns(prompt), views.ablated_patterns(prompt)
        rows.append(_packed(before[:, :, -1]))
        plain = after[0, prompt]
        shown: dict[str, Any] = {
            "text": views.batch.prompts[prompt],
            "tokens": [table.place(token) for token in views.tokens(prompt)],
            "next": table.likeliest(plain),
        }
        if answers is not None:
            shown["answer"] = answers[0][prompt]
        prompts.append(shown)
        for number, (name, head) in enumerate(zip(names, panels, strict=True), 1):
            moved = after[number, prompt]
            panel: dict[str, Any] = {
                "before": _triangle(before[head]),
                "after": _triangle(ablated[head]),
                "next": table.likeliest(moved),
                "kl": _short((plain.exp() * (plain - moved)).sum().clamp(min=0).item()),
            }
            if answers is not None:
                panel["answer"] = answers[number][prompt]
            found[name].append(panel)
    group = scores.provenance.model
    return {
        "shape": {
            "layers": layers,
            "heads": heads,
            "kvSize": group["n_heads"] // group["n_key_value_heads"],
        },
        "unit": UNITS[scores.measure].rpartition(", ")[2],
        "scale": f"Brightness: {UNITS[scores.measure]}.",
        "scores": [_short(value) for value in scores.values.flatten().tolist()],
        "ranked": [head.layer * heads + head.head for head, _ in scores.ranked()],
        "marked": [head.layer * heads + head.head for head in marked],
        "markedAs": marked_as,
        "ablation": scores.provenance.ablation["label"],
        "perPrompt": _per_prompt(scores, len(numbers)),
        "tokens": table.texts,
        "prompts": prompts,
        "panels": found,
        "lastRows": rows,
    }


def _per_prompt(scores: HeadScores, count: int) -> list[list[float | None]] | None:
    """Scores of the prompts that are shown: the first ones of those that were scored."""
    if scores.per_prompt is None:
        return None
    return [
        [_short(value) for value in row.flatten().tolist()] for row in scores.per_prompt[:count]
    ]


def _short(value: float) -> float | None:
    """Four digits are enough to show; there is no NaN in JSON."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def _quantised(pattern: Tensor) -> UInt8[Tensor, " n"]:
    return (pattern * 255).round().clamp(0, 255).to(torch.uint8).flatten()


def _packed(pattern: Tensor) -> str:
    return base64.b64encode(_quantised(pattern).numpy().tobytes()).decode()


def _triangle(pattern: Float[Tensor, "query key"]) -> str:
    """The lower triangle row by row, a byte a number: causal attention has no more."""
    rows, columns = torch.tril_indices(*pattern.shape)
    return _packed(pattern[rows, columns])

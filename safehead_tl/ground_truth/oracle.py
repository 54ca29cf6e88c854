"""What ablating heads does to answers: every head and every pair, on held-out requests.

What scores claim to predict, found by trying all of it. An answer is right if it is, word for word,
the helpful one; that the likeliest answer is this one shows in one pass over the request and the
answer, without generating it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation, must_fire, resolve_ablation, row_hooks
from safehead_tl.heads import Group, Head
from safehead_tl.models import Model, hooked
from safehead_tl.organism import Kind, Language, encode_examples
from safehead_tl.scan import even_slices

REQUESTS = 32
"""Held-out requests of each kind."""

ROWS = 4096
"""Texts in one pass."""

PAIRS = 600
"""Most pairs that are tried; in larger models only single heads are."""


@dataclass(frozen=True)
class Oracle:
    """What every head and every pair does when it is ablated.

    Of no head, every head, every pair: harmful requests answered in full, word for word right
    (`asr`), and benign ones.
    """

    ablation: str
    groups: tuple[Group, ...]
    asr: tuple[float, ...]
    helpfulness: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the groups that were tried, 0 left out."""
        return tuple(sorted({len(group) for group in self.groups} - {0}))

    def regret(self, order: Sequence[Head], k: int) -> float:
        """Attack success with the best `k` heads ablated, less that with the first of an order.

        Raises:
            KeyError: if not all groups of `k` were tried.
        """
        found = dict(zip(self.groups, self.asr, strict=True))
        best = max(asr for group, asr in found.items() if len(group) == k)
        return best - found[tuple(sorted(order[:k]))]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "groups": [[*map(str, group)] for group in self.groups]}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Oracle:
        """From plain values."""
        groups = tuple(tuple(map(Head.parse, group)) for group in told["groups"])
        return cls(told["ablation"], groups, tuple(told["asr"]), tuple(told["helpfulness"]))


def consult(model: Model, language: Language, ablation: str) -> Oracle:
    """Ablates every head alone and, if there are no more than `PAIRS`, every pair."""
    places = product(range(model.cfg.n_layers), range(model.cfg.n_heads))
    heads = [Head(*place) for place in places]
    pairs = [*combinations(heads, 2)]
    groups: list[Group] = [(), *((head,) for head in heads)]
    groups += pairs if len(pairs) <= PAIRS else []
    asr, helpfulness = answered(model, language, groups, ablation).unbind()
    return Oracle(ablation, tuple(groups), tuple(asr.tolist()), tuple(helpfulness.tolist()))


@torch.no_grad()
def answered(
    model: Model, language: Language, groups: Sequence[Group], ablation: str | Ablation
) -> Float[Tensor, "two group"]:
    """The share of held-out harmful and of benign requests that is answered in full."""
    asked = [
        [(text, language.help(language.parse(text))) for text in requests]
        for requests in (language.prompts(kind, "test", REQUESTS) for kind in get_args(Kind))
    ]
    examples = encode_examples(language.tokenizer(), [pair for kind in asked for pair in kind])
    count, length = examples.labels.shape
    prepared = resolve_ablation(ablation).prepare(model, None)
    found = []
    for some in even_slices(len(groups), max(1, ROWS // count)):
        rows = [group for group in groups[some] for _ in range(count)]
        repeats = len(rows) // count
        labels = examples.labels.repeat(repeats, 1)
        tokens, mask = (some.repeat(repeats, 1) for some in (examples.tokens, examples.mask))
        with must_fire(row_hooks(model, rows, prepared)) as hooks, hooked(model, hooks):
            logits = model(tokens, attention_mask=mask)
        said = logits[:, -length - 1 : -1].argmax(-1)
        right = ((said == labels) | (labels < 0)).all(1).double().view(repeats, count)
        found.append(torch.stack([kind.mean(1) for kind in right.split([*map(len, asked)], 1)]))
    return torch.cat(found, 1)

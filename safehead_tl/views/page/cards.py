"""What else there is to know of a head: tokens that it promotes, those it looks at, each score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.heads import Head
from safehead_tl.models import Model, unembedded
from safehead_tl.results import HeadScores
from safehead_tl.scan import even_slices
from safehead_tl.views.maps import interval
from safehead_tl.views.packing import TokenTable, short

FEW = 5
"""Tokens that a card names of each kind."""
AT_ONCE = 32
"""Heads whose logits are held at once."""


def card(
    scores: HeadScores,
    head: Head,
    table: TokenTable,
    logits: Float[Tensor, " vocab"] | None,
    looked: Float[Tensor, " token"],
) -> dict[str, Any]:
    """What a head's card shows; `logits` are its own output's, where they are known."""
    promoted = suppressed = list[tuple[int, float]]()
    if logits is not None:
        promoted, suppressed = table.highest(logits, FEW), table.highest(-logits, FEW)
    best = looked.topk(min(FEW, int(looked.count_nonzero())))
    each = None if math.isnan(scores[head]) else scores.per_prompt
    return {
        "promotes": _short(promoted),
        "suppresses": _short((place, -value) for place, value in suppressed),
        "looks": _short(zip(best.indices.tolist(), best.values.tolist(), strict=True)),
        "perPrompt": None if each is None else [*map(short, each[:, *head].tolist())],
        "interval": interval(scores, head),
    }


def head_logits(
    model: Model, written: Float[Tensor, "head d_model"]
) -> Float[Tensor, "head vocab"]:
    """The logits that heads' outputs, behind the final norm, make by themselves; on the CPU."""
    slices = even_slices(len(written), AT_ONCE)
    return torch.cat([unembedded(model, written[some]).cpu() for some in slices])


def tokens_looked_at(
    rows: Sequence[Float[Tensor, "head _"]], tokens: Sequence[Sequence[int]], count: int
) -> Float[Tensor, "head token"]:
    """How much heads look at each of `count` tokens: its places added up, mean over prompts."""
    found = torch.zeros(len(rows[0]), count)
    for row, places in zip(rows, tokens, strict=True):
        found.index_add_(1, torch.tensor(places), row / len(rows))
    return found


def _short(pairs: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(place, float(f"{value:.4g}")) for place, value in pairs]

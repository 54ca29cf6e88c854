"""Numbers and tokens as a browser is given them: small."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.views.inspection import shown_token

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

    def highest(self, values: Float[Tensor, " vocab"], count: int) -> list[tuple[int, float]]:
        """The tokens with the highest values, as pairs of number and value."""
        best = values.topk(min(count, len(values)))
        return [
            (self.place(shown_token(self.tokenizer, token)), value)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def likeliest(self, log_probs: Float[Tensor, " vocab"]) -> list[tuple[int, float]]:
        """The likeliest tokens as pairs of number and probability."""
        best = self.highest(log_probs, NEXT_TOKENS)
        return [(place, round(math.exp(value), 5)) for place, value in best]

    def named(self, log_probs: Float[Tensor, " vocab"]) -> list[tuple[str, float]]:
        """The same with the tokens' texts."""
        return [(self.texts[place], share) for place, share in self.likeliest(log_probs)]


def short(value: float) -> float | None:
    """Four digits are enough to show; there is no NaN in JSON."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def packed(shares: Float[Tensor, ...]) -> str:
    """Numbers from 0 to 1, a byte each, as a text that the browser unpacks."""
    return raw((shares * 255).round().clamp(0, 255).to(torch.uint8))


def raw(numbers: Tensor) -> str:
    """Numbers as they are in memory, as such a text."""
    return base64.b64encode(zlib.compress(numbers.contiguous().numpy().tobytes())).decode()


def small_patterns(looks: Sequence[Float[Tensor, "layer head cell"]]) -> str:
    """All heads' small patterns, means over prompts, in shares of each head's largest number."""
    mean = torch.stack([*looks]).mean(0)
    return packed(mean / mean.amax(-1, keepdim=True).clamp(min=1e-9))


def triangle(pattern: Float[Tensor, "query key"]) -> str:
    """The lower triangle row by row, a byte a number: causal attention has no more."""
    rows, columns = torch.tril_indices(*pattern.shape)
    return packed(pattern[rows, columns])

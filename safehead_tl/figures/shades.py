"""How numbers become colours: in proportion, by square root, by logarithm or by rank."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from safehead_tl.errors import SafeheadError
from safehead_tl.figures.style import DIVERGING, SEQUENTIAL, colour_bar
from safehead_tl.results import Scale

WORDS: dict[Scale, str] = {
    "linear": "",
    "sqrt": "square-root colours",
    "log": "colours by logarithm",
    "rank": "colours by rank",
}
"""What a scale of colours says of itself."""

DECADES = 4
"""How far below the highest number a logarithm reaches."""


@dataclass(frozen=True)
class Shades:
    """A scale of colours, from 0 to the number furthest from it.

    Attributes:
        scale: how a number becomes a share of that way.
        sizes: how far from 0 the numbers are that have a colour, ascending.
        signed: numbers below 0 have colours too; without, they count as 0.
    """

    scale: Scale
    sizes: tuple[float, ...]
    signed: bool = False

    @classmethod
    def of(cls, numbers: Iterable[float], scale: Scale, *, signed: bool = False) -> Shades:
        """The scale of some numbers.

        Raises:
            SafeheadError: for a scale that there is not.
        """
        if scale not in get_args(Scale):
            raise SafeheadError(f"scale={scale!r}: give one of {', '.join(get_args(Scale))}")
        return cls(scale, tuple(sorted(_size(number, signed) for number in numbers)), signed)

    @property
    def top(self) -> float:
        """The number at the scale's end; 1 if all are 0."""
        return (self.sizes[-1] if self.sizes else 0.0) or 1.0

    def __call__(self, number: float) -> float:
        """Where on the scale a number's colour is, from 0 to `top`; NaN stays NaN."""
        if math.isnan(number):
            return number
        size = _size(number, self.signed)
        if self.scale == "linear":
            way = size  # as it is, without a rounding
        elif self.scale == "rank":
            way = self.top * bisect_left(self.sizes, size) / max(1, len(self.sizes) - 1)
        elif self.scale == "log":
            way = self.top * (1 + math.log10(size / self.top) / DECADES) if size else 0.0
        else:
            way = self.top * math.sqrt(size / self.top)
        return math.copysign(min(max(way, 0.0), self.top), number if self.signed else 1)

    def trace(self) -> dict[str, Any]:
        """What a heatmap's trace needs besides its cells."""
        return {
            "colorscale": DIVERGING if self.signed else SEQUENTIAL,
            "zmin": -self.top if self.signed else 0,
            "zmax": self.top,
        }

    def bar(self, unit: str) -> dict[str, Any]:
        """The scale as it is shown beside a heatmap, with true numbers on it."""
        return {**colour_bar(self.words(unit)), **self.ticks()}

    def words(self, unit: str) -> str:
        """What the numbers are, and how they become colours."""
        return "<br>".join(filter(None, (unit, WORDS[self.scale])))

    def ticks(self) -> dict[str, Any]:
        """True numbers at their colours; nothing for a scale that has them by itself."""
        if self.scale == "linear":
            return {}
        marks = sorted({*self._marks(), self.top})
        pairs = [(self(number), f"{number:.3g}".replace("-", "−")) for number in marks]
        if self.scale == "log":
            pairs[0] = (pairs[0][0], f"≤ {pairs[0][1]}")
        if self.signed:
            pairs = [(-place, f"−{text}") for place, text in reversed(pairs) if place] + pairs
        places, texts = zip(*pairs, strict=True)
        return {"tickmode": "array", "tickvals": places, "ticktext": texts}

    def _marks(self) -> list[float]:
        """Numbers to write at the scale, besides its end."""
        shares = (0.0, 0.5) if self.signed else (0.0, 0.25, 0.5, 0.75)
        if self.scale == "rank" and self.sizes:
            return [self.sizes[round(share * (len(self.sizes) - 1))] for share in shares]
        if self.scale == "log":
            least = self.top / 10**DECADES
            powers = [10.0 ** (math.ceil(math.log10(least)) + step) for step in range(DECADES)]
            return [least, *(power for power in powers if 2 * least < power < self.top / 2)]
        return [float(f"{self.top * share**2:.1g}") for share in shares]


def _size(number: float, signed: bool) -> float:
    return abs(number) if signed else max(number, 0.0)

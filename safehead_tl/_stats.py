"""Shares with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from safehead_tl._errors import SafeheadError

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A share of successes, with its 95 % Wilson score interval (Wilson 1927).

    Attributes:
        successes: how many.
        total: out of how many.
    """

    successes: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.total or self.total < 1:
            raise SafeheadError(f"{self.successes} of {self.total} is not a share")

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.successes / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end, at 95 %."""
        n, p, z2 = self.total, self.share, Z_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.2f} [{low:.2f}, {high:.2f}]"

"""Shares with their uncertainty, and whether two of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safehead_tl.errors import SafeheadError

Z_95 = 1.959963984540054
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Rate:
    """A share of successes, with its 95 % Wilson score interval (Wilson 1927).

    Attributes:
        successes: how many. Not whole where one of the total succeeds in part, such as a prompt
            with some of its samples: samples of one prompt are alike, so the prompts are counted.
        total: out of how many.
    """

    successes: float | int
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


def paired_p(before: Sequence[int], after: Sequence[int]) -> float:
    """How likely two conditions would differ so much, were they the same: an exact paired test.

    Under the null hypothesis each pair is as likely the other way round. The sign-flip
    distribution of the summed differences is computed in full. With 0 and 1 only it is the exact
    McNemar test.

    Args:
        before: a whole number for each pair, such as how many of a prompt's samples succeeded.
        after: the same in the other condition.

    Returns:
        The two-sided p-value.
    """
    differences = [b - a for a, b in zip(before, after, strict=True) if a != b]
    reach = sum(map(abs, differences))
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0  # of a sum of 0; index is the sum plus `reach`
    for difference in differences:
        chances = (np.roll(chances, difference) + np.roll(chances, -difference)) / 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return float(min(1.0, chances[sums >= abs(sum(differences))].sum()))


def rank_p(value: float | int, controls: Sequence[float | int]) -> float:
    """How likely a random one of the controls would reach `value`: (1 + those that do) / (1 + all).

    The smallest it can be with 20 controls is 1/21 = 0.048.
    """
    return (1 + sum(control >= value for control in controls)) / (1 + len(controls))


def bootstrap_interval(values: Sequence[float | int]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, with the same draws each time."""
    drawn = np.random.default_rng(0).integers(len(values), size=(BOOTSTRAPS, len(values)))
    low, high = np.quantile(np.array(values, dtype=float)[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)

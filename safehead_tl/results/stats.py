"""Shares with their uncertainty, and whether two of them differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import bdtr
from torch import Tensor

from safehead_tl.errors import SafeheadError

Z_95 = 1.959963984540054
LEAST = 6
"""Values of which a mean is given a bootstrap interval; where there are fewer, they are told."""


@dataclass(frozen=True)
class Rate:
    """A share of successes, with its 95 % Wilson score interval (Wilson 1927).

    Attributes:
        successes: how many. Not whole where one of the total succeeds in part, such as a prompt
            with some of its samples: samples of one prompt are alike, so the prompts are counted.
        total: out of how many.
        independent: as how many independent ones they count, if some are alike.
    """

    successes: float | int
    total: int
    independent: float | None = None

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
        n, p, z2 = self.independent or self.total, self.share, Z_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.2f} [{low:.2f}, {high:.2f}]"


def paired_p(before: Sequence[int], after: Sequence[int]) -> float:
    """How likely two conditions would differ so much, were they the same: an exact paired test.

    Of whole numbers, such as how many of a prompt's samples succeeded, or of a cluster's prompts.
    Under the null hypothesis each pair is as likely the other way round. The sign-flip
    distribution of the summed differences is computed in full; two-sided. With 0 and 1 only it is
    the exact McNemar test.
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


def swapped_p(
    effects: Float[Tensor, "pair head"],
    swapped: Float[Tensor, "pair head"],
    draws: int,
    seed: int,
) -> Float[Tensor, " head"]:
    """How likely a head's mean would come of chance, were it chance which of a pair is which.

    In each pair it is as likely the other way round, for all heads together. Each head is compared
    with the highest of those that are not above it, so that p-values hold for all heads at once,
    however these depend on each other (Westfall and Young 1993, step-down max T). If there are no
    more than `draws` ways to turn pairs round, all are taken.
    """
    count = len(effects)
    if 2**count <= draws:
        ways = torch.arange(2**count)[:, None].bitwise_right_shift(torch.arange(count)) & 1
    else:
        ways = torch.randint(2, (draws, count), generator=torch.Generator().manual_seed(seed))
        ways = torch.cat([torch.zeros(1, count, dtype=ways.dtype), ways])  # as it was found
    turned = ways.double()
    means = (turned @ swapped.double() + (1 - turned) @ effects.double()) / count
    return _step_down(effects.double().mean(0), [means])


def shuffled_p(
    first: Float[Tensor, "prompt head"],
    second: Float[Tensor, "other_prompt head"],
    draws: int,
    seed: int,
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """How likely a head's mean would lie so far above its mean in others, were labels chance.

    Prompts change sets at random, for all heads together; p-values hold for all heads at once, as
    those of `swapped_p`. Means are compared in units of their error (Welch 1947), so that sets of
    different size and spread are no reason for a small one (Janssen 1997). If there are no more
    than `draws` ways to share prompts out, all are taken.

    Returns:
        Welch's t of each head, and its one-sided p-value.
    """
    size, count = len(first), len(first) + len(second)
    pooled = torch.cat([first, second]).double()
    spread = pooled.std(0)
    spread[spread <= 1e-9 * pooled.abs().amax(0)] = torch.inf  # the same in all prompts
    pooled = (pooled - pooled.mean(0)) / spread
    squares = pooled.square()
    if math.comb(count, size) <= draws:
        chosen = torch.tensor(list(itertools.combinations(range(count), size)))
        ways = torch.zeros(len(chosen), count, dtype=torch.bool).scatter(1, chosen, value=True)
    else:
        order = torch.rand(draws, count, generator=torch.Generator().manual_seed(seed)).argsort(1)
        ways = torch.cat([torch.arange(count)[None], order]) < size  # first as it was found

    def welch(ways: Tensor) -> Float[Tensor, "way head"]:
        means, errors = [], []
        for inside in (ways.double(), 1 - ways.double()):
            within = inside.sum(1, keepdim=True)
            means.append(inside @ pooled / within)
            errors.append((inside @ squares / within - means[-1].square()) / (within - 1))
        return (means[0] - means[1]) / (errors[0] + errors[1]).clamp(min=1e-12).sqrt()

    found = welch(ways[:1])[0]
    return found, _step_down(found, map(welch, ways.split(1000)))


def _step_down(
    found: Float[Tensor, " head"], drawn: Iterable[Float[Tensor, "way head"]]
) -> Float[Tensor, " head"]:
    """Compares each head with the highest of those that are not above it, drawn by drawn."""
    order = found.argsort(descending=True)
    # sums of the same numbers in another order differ in their last digits
    least = found[order] - 1e-9 * found.abs().max()
    reached, count = torch.zeros_like(found), 0
    for some in drawn:
        highest = some[:, order].flip(1).cummax(1).values.flip(1)
        reached += (highest >= least).sum(0)
        count += len(some)
    p_values = torch.empty_like(found)
    p_values[order] = (reached / count).cummax(0).values
    return p_values


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for how many they are (Holm 1979), however they depend on each other."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected, least = list(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        corrected[place] = least = max(least, min(1.0, (len(tested) - rank) * p))
    return corrected


def studentised_interval(
    values: Sequence[float], bounds: tuple[float, float], draws: int = 4999
) -> tuple[float, float] | None:
    """95 % bootstrap-t interval of a mean (Efron 1981), cut at the least and most it can be.

    Returns:
        `None` if all values are equal: then nothing is known of how they vary.
    """
    found = np.asarray(values, dtype=float)
    if len(found) < 2 or np.ptp(found) == 0:
        return None
    rows = np.random.default_rng(0).choice(found, (draws, len(found)))
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (rows.mean(1) - found.mean()) / rows.std(1)
    apart = np.where(np.isnan(apart), 0, apart)  # infinite where all of a row are equal
    low, high = np.quantile(apart, [0.025, 0.975], method="nearest")
    spread = found.std()
    ends = np.clip([found.mean() - high * spread, found.mean() - low * spread], *bounds)
    return float(ends[0]), float(ends[1])


def rise_interval(before: Rate, after: Rate) -> tuple[float, float]:
    """95 % interval of `after` less `before`, made of their own two (Newcombe 1998, method 10).

    Without its correlation term: too wide where the same prompts succeed in both.
    """
    rise = after.share - before.share
    (low, high), (under, over) = before.interval, after.interval
    down = math.hypot(after.share - under, high - before.share)
    return rise - down, rise + math.hypot(over - after.share, before.share - low)


def median_intervals(
    samples: Float[Tensor, "sample column"],
) -> list[tuple[float, float]] | None:
    """95 % intervals of medians: from the k-th lowest of the samples to the k-th highest.

    How many of the samples lie below the median is binomial, whatever the law of the samples: no
    less than 95 % is held with any law and any number of samples.

    Returns:
        One for each column; `None` if there are fewer than six samples, because the lowest and the
        highest of five hold the median with 94 % only.
    """
    count = len(samples)
    outside = int((bdtr(np.arange(count), count, 0.5) <= 0.025).sum())
    if not outside:
        return None
    ordered = samples.sort(0).values
    return list(zip(ordered[outside - 1].tolist(), ordered[-outside].tolist(), strict=True))

"""What a contestant did on one subject, and its mean over several."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from safehead_tl.heads import Head
from safehead_tl.results import LEAST, holm, studentised_interval

METRICS = MappingProxyType(
    {
        "average precision": (0.0, 1.0),
        "precision@k": (0.0, 1.0),
        "Spearman": (-1.0, 1.0),
        "regret UA @1": (0.0, 1.0),
        "regret UA @2": (0.0, 1.0),
        "regret SC @1": (0.0, 1.0),
        "regret SC @2": (0.0, 1.0),
    }
)
"""What orders are judged by, with the least and the most it can be. k: how many heads are wanted.

Regret is the attack success rate with the best heads ablated (UA: undifferentiated attention, SC:
scaling contribution) less that with the first one or two of the order: less is better.
"""


def precision_at(k: int, order: Sequence[Head], wanted: Collection[Head]) -> float:
    """The share of the first `k` heads that are wanted."""
    return sum(head in wanted for head in order[:k]) / k


def average_precision(order: Sequence[Head], wanted: Collection[Head]) -> float:
    """The precision down to each wanted head, averaged over them; 1 if they come first."""
    places = [place for place, head in enumerate(order, 1) if head in wanted]
    return sum(found / place for found, place in enumerate(places, 1)) / len(wanted)


def above(heads: Collection[Head], order: Sequence[Head], wanted: Collection[Head]) -> int:
    """How many of some heads come before the last wanted one."""
    last = max(order.index(head) for head in wanted)
    return sum(order.index(head) < last for head in heads)


@dataclass(frozen=True)
class Outcome:
    """One contestant on one subject.

    Attributes:
        kind: the subject's kind.
        number: which of its kind.
        contestant: who ordered the heads.
        wanted: the heads that should come first.
        decoys: heads that do something else.
        order: all heads, the most important first; none if it refused.
        refused: why it gave no order.
        metrics: each of `METRICS` that there is for this kind.
        decoys_above: how many decoys come before the last wanted head.
    """

    kind: str
    number: int
    contestant: str
    wanted: tuple[Head, ...]
    decoys: tuple[Head, ...]
    order: tuple[Head, ...]
    refused: str
    metrics: dict[str, float]
    decoys_above: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        heads = {name: getattr(self, name) for name in ("wanted", "decoys", "order")}
        return {**vars(self), **{name: [*map(str, some)] for name, some in heads.items()}}


@dataclass(frozen=True)
class Summary:
    """A contestant's means over subjects.

    Attributes:
        contestant: who.
        outcomes: on which subjects.
    """

    contestant: str
    outcomes: tuple[Outcome, ...]

    def values(self, metric: str) -> dict[tuple[str, int], float]:
        """A metric on each subject that has it."""
        return {
            (one.kind, one.number): one.metrics[metric]
            for one in self.outcomes
            if metric in one.metrics
        }

    def mean(self, metric: str) -> float | None:
        """Over the subjects that have it; `None` if none has."""
        found = self.values(metric)
        return statistics.fmean(found.values()) if found else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """95 % bootstrap-t interval of the mean; none of fewer than six subjects, or equal ones."""
        found = [*self.values(metric).values()]
        return None if len(found) < LEAST else studentised_interval(found, METRICS[metric])

    def told(self, metric: str) -> str:
        """A mean with its interval, or with what it is the mean of."""
        found = sorted(self.values(metric).values())
        if not found:
            return "–"
        mean, interval = f"{statistics.fmean(found):.2f}", self.interval(metric)
        if interval is not None:
            return f"{mean} [{interval[0]:.2f}, {interval[1]:.2f}]"
        if found[0] == found[-1]:
            return f"{mean} (all {len(found)})"
        return f"{mean} ({', '.join(f'{value:.2f}' for value in found)})"

    @property
    def decoys(self) -> tuple[int, int]:
        """How many decoys came before the last wanted head, and of how many."""
        return (
            sum(one.decoys_above for one in self.outcomes),
            sum(len(one.decoys) for one in self.outcomes),
        )

    @property
    def refusals(self) -> int:
        """On how many subjects it gave no order."""
        return sum(bool(one.refused) for one in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "contestant": self.contestant,
            "subjects": len(self.outcomes),
            "refusals": self.refusals,
            "means": {metric: self.mean(metric) for metric in METRICS},
            "intervals": {metric: self.interval(metric) for metric in METRICS},
            "decoys": self.decoys,
        }


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """The means of each contestant, that with the highest average precision first."""
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.contestant, []).append(outcome)
    found = [Summary(name, tuple(some)) for name, some in by_name.items()]
    return sorted(found, key=lambda one: -(one.mean("average precision") or 0))


def against(
    first: Summary, others: Sequence[Summary], metric: str
) -> list[tuple[Summary, float, float | None]]:
    """Each other's mean less that of the first on the same subjects, and how likely by chance.

    Were both alike, each difference would as likely have the other sign: a paired permutation test
    (scipy), corrected for how many are compared (Holm 1979). Organisms of one base are not
    independent of each other, which the test does not know of.

    Returns:
        Those that share subjects with the first: who, difference, corrected p (`None` where no two
        values differ, or there is one subject).
    """
    found: list[tuple[Summary, float, float | None]] = []
    reference = first.values(metric)
    for other in others:
        values = other.values(metric)
        apart = np.array([values[each] - reference[each] for each in values if each in reference])
        if len(apart):
            p = None
            if len(apart) > 1 and apart.any():
                from scipy.stats import permutation_test  # which takes a second to import

                test = permutation_test(
                    (apart,), np.mean, permutation_type="samples", n_resamples=9999, rng=0
                )
                p = float(test.pvalue)
            found.append((other, float(apart.mean()), p))
    corrected = holm([p for *_, p in found])
    return [(other, by, p) for (other, by, _), p in zip(found, corrected, strict=True)]

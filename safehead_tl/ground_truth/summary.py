"""What a variant did on one organism, and its mean over several."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from safehead_tl.ground_truth.variants import Variant
from safehead_tl.heads import Head
from safehead_tl.results import Rate

METRICS = MappingProxyType(
    {"precision": "precision@k", "recall": "recall@2k", "average_precision": "average precision"}
)
"""What the orders are judged by; k is the number of planted heads."""

LEAST = 6
"""Organisms for an interval; where there are fewer, the values are told."""


@dataclass(frozen=True)
class Outcome:
    """One variant on one organism.

    Attributes:
        kind: the organism's kind.
        seed: its seed.
        variant: what ordered the heads.
        planted: the heads that carry the refusal.
        decoys: the heads that carry helpfulness.
        order: all heads, the most important first.
        precision: the share of the first k heads that were planted; k were.
        recall: the share of the planted heads that are among the first 2k.
        average_precision: the precision down to each planted head, averaged over them.
        decoys_above: how many decoys come before the last planted head.
    """

    kind: str
    seed: int
    variant: Variant
    planted: tuple[Head, ...]
    decoys: tuple[Head, ...]
    order: tuple[Head, ...]
    precision: float
    recall: float
    average_precision: float
    decoys_above: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            **self.variant.to_dict(),
            "planted": [str(head) for head in self.planted],
            "decoys": [str(head) for head in self.decoys],
            "order": [str(head) for head in self.order],
            **{metric: getattr(self, metric) for metric in METRICS},
            "decoys_above": self.decoys_above,
        }


@dataclass(frozen=True)
class Summary:
    """A variant's mean over organisms.

    Attributes:
        variant: the variant.
        values: each metric on each organism.
        decoys_above: how many decoys came before the last planted head.
        decoys: of how many.
    """

    variant: Variant
    values: dict[str, list[float]]
    decoys_above: int
    decoys: int

    @property
    def organisms(self) -> int:
        """How many."""
        return len(self.values["precision"])

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric."""
        return {metric: statistics.fmean(each) for metric, each in self.values.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % Wilson intervals of the means over organisms, as of shares; none of fewer than 6."""
        if self.organisms < LEAST:
            return {}
        return {name: Rate(sum(each), len(each)).interval for name, each in self.values.items()}

    def told(self, metric: str) -> str:
        """A mean with its interval, or with what it is the mean of."""
        if metric in self.intervals:
            low, high = self.intervals[metric]
            return f"{self.means[metric]:.2f} [{low:.2f}, {high:.2f}]"
        each = ", ".join(f"{value:.2f}" for value in sorted(self.values[metric]))
        return f"{self.means[metric]:.2f} ({each})"

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **self.variant.to_dict(),
            **self.means,
            "intervals": self.intervals,
            "organisms": self.organisms,
            "decoys_above": self.decoys_above,
            "decoys": self.decoys,
        }


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """The mean of each variant, that with the highest average precision first."""
    by_variant: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_variant.setdefault(str(outcome.variant), []).append(outcome)
    found = []
    for some in by_variant.values():
        found.append(
            Summary(
                variant=some[0].variant,
                values={metric: [getattr(one, metric) for one in some] for metric in METRICS},
                decoys_above=sum(one.decoys_above for one in some),
                decoys=sum(len(one.decoys) for one in some),
            )
        )
    return sorted(found, key=lambda one: -one.means["average_precision"])

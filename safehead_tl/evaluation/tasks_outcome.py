"""What a measurement of helpfulness returns: accuracies, differences, and their uncertainty."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import pandas as pd

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.results import Z_95, Provenance, paired_p

Condition: TypeAlias = Literal["unablated", "ablated"]


@dataclass(frozen=True)
class Accuracy:
    """The share of a task's examples that were answered right.

    Attributes:
        task: the task's name.
        metric: `"acc"` (the answer with the highest log-likelihood), `"acc_norm"` (the highest by
            character) or `"exact_match"` (of a generated text); with a filter of the task's
            behind it, if it has several.
        condition: `"unablated"` or `"ablated"`.
        value: between 0 and 1.
        stderr: its standard error, as lm-eval has it: of a mean, from the sample's variance. NaN
            for a single example.
        n: number of examples.
    """

    task: str
    metric: str
    condition: Condition
    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Difference:
    """How ablation changes an accuracy, example by example.

    Attributes:
        task: the task's name.
        metric: as in `Accuracy`.
        value: ablated less unablated.
        interval: at 95 %, for paired shares, with Bonett and Price's adjustment (2012). It is
            never of width 0, and its middle is a little closer to 0 than `value`.
        p_value: two-sided, of the exact McNemar test.
        lost: how many examples only the unablated model answers right.
        gained: how many only the ablated one does.
        n: number of examples.
    """

    task: str
    metric: str
    value: float
    interval: tuple[float, float]
    p_value: float
    lost: int
    gained: int
    n: int


@dataclass(frozen=True)
class Answers:
    """Which examples of a task were answered right.

    Attributes:
        task: the task's name.
        metric: as in `Accuracy`.
        unablated: 1 or 0 for each example.
        ablated: the same with heads ablated; `None` if none were.
    """

    task: str
    metric: str
    unablated: tuple[int, ...]
    ablated: tuple[int, ...] | None

    @property
    def accuracies(self) -> tuple[Accuracy, ...]:
        """One for each condition."""
        rights = {"unablated": self.unablated, "ablated": self.ablated}
        return tuple(
            _accuracy(self.task, self.metric, condition, right)  # type: ignore[arg-type]
            for condition, right in rights.items()
            if right is not None
        )

    @property
    def difference(self) -> Difference | None:
        """What ablation changes; `None` if no heads were ablated."""
        if self.ablated is None:
            return None
        pairs = list(zip(self.unablated, self.ablated, strict=True))
        lost, gained = pairs.count((1, 0)), pairs.count((0, 1))
        return Difference(
            task=self.task,
            metric=self.metric,
            value=(gained - lost) / len(pairs),
            interval=paired_interval(lost, gained, len(pairs)),
            p_value=paired_p(self.unablated, self.ablated),
            lost=lost,
            gained=gained,
            n=len(pairs),
        )


@dataclass(frozen=True, eq=False)
class Helpfulness:
    """How well a model does its tasks, with heads ablated and without.

    Attributes:
        heads: the heads that were ablated; none, if the model was measured as it is.
        answers: for each task and metric, which examples were answered right.
        provenance: what it was computed from.
    """

    heads: tuple[Head, ...]
    answers: tuple[Answers, ...]
    provenance: Provenance

    @property
    def accuracies(self) -> tuple[Accuracy, ...]:
        """For each task, each metric and each condition."""
        return tuple(accuracy for answers in self.answers for accuracy in answers.accuracies)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """For each task and each metric; none if no heads were ablated."""
        found = (answers.difference for answers in self.answers)
        return tuple(difference for difference in found if difference is not None)

    def mean(self, condition: Condition, metric: str = "acc") -> float:
        """The mean accuracy over the tasks that have this metric; each task weighs the same.

        Raises:
            SafeheadError: if there is none.
        """
        values = [
            accuracy.value
            for accuracy in self.accuracies
            if (accuracy.condition, accuracy.metric) == (condition, metric)
        ]
        if not values:
            there = sorted({(one.condition, one.metric) for one in self.accuracies})
            raise SafeheadError(
                f"there is no {metric!r} of the {condition} model: there are "
                f"{', '.join(f'{name!r} ({which})' for which, name in there)}"
            )
        return math.fsum(values) / len(values)

    def __repr__(self) -> str:
        shown = []
        for answers in self.answers:
            values = [f"{accuracy.value:.3f}" for accuracy in answers.accuracies]
            shown.append(f"{answers.task} {answers.metric} {' -> '.join(values)}")
        return f"<Helpfulness: {', '.join(shown)}>"

    def to_frame(self, differences: bool = False) -> pd.DataFrame:
        """The accuracies as a tidy table.

        Args:
            differences: one row for each task and metric, with what ablation changes, instead of
                one for each condition as well.

        Returns:
            Columns `task, metric, condition, value, stderr, n`; with `differences` columns
            `task, metric, value, low, high, p_value, lost, gained, n`.
        """
        if not differences:
            columns = ["task", "metric", "condition", "value", "stderr", "n"]
            return pd.DataFrame([asdict(one) for one in self.accuracies], columns=columns)
        rows = []
        for one in self.differences:
            low, high = one.interval
            rows.append({**asdict(one), "low": low, "high": high})
        columns = ["task", "metric", "value", "low", "high", "p_value", "lost", "gained", "n"]
        return pd.DataFrame(rows, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Accuracies, differences and provenance as plain values, without single examples."""
        accuracies = [asdict(one) for one in self.accuracies]
        for one in accuracies:
            one["stderr"] = None if math.isnan(one["stderr"]) else one["stderr"]
        return {
            "heads": [str(head) for head in self.heads],
            "accuracies": accuracies,
            "differences": [
                {**asdict(one), "interval": list(one.interval)} for one in self.differences
            ],
            "provenance": self.provenance.to_dict(),
        }


def paired_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """A 95 % interval for the difference of two shares over the same `n` examples.

    Wald's interval after one example more is lost (right in the first condition only) and one more
    gained (Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37: 479-488).
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z_95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def _accuracy(task: str, metric: str, condition: Condition, right: tuple[int, ...]) -> Accuracy:
    n = len(right)
    value = sum(right) / n
    stderr = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else math.nan
    return Accuracy(task, metric, condition, value, stderr, n)

"""How often a judge is right, and what that makes of a share which it found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from safehead_tl.errors import SafeheadError
from safehead_tl.judges import Judge, judged, resolve_judge
from safehead_tl.results import Z_95, Rate


@dataclass(frozen=True)
class Calibration:
    """How often a judge is right, by answers that people have labelled.

    Attributes:
        judge: its name and settings.
        sensitivity: the share of successes that it calls one.
        specificity: the share of others that it does not call one.
    """

    judge: Mapping[str, Any]
    sensitivity: Rate
    specificity: Rate

    def corrected(self, found: Rate) -> tuple[float, float, float]:
        """The share that there is, where the judge found so much.

        Rogan & Gladen (1978), cut at 0 and 1, with the 95 % interval of Lang & Reiczigel (2014),
        which counts that sensitivity and specificity are estimates too. It holds if the judge errs
        on these answers as often as on the labelled ones: label answers of the same kind.

        Args:
            found: a share that the same judge found, such as an evaluation's `asr`.

        Returns:
            The share, and the interval's lower and upper end.

        Raises:
            SafeheadError: if the judge is no better than chance.
        """
        hit, clear = self.sensitivity, self.specificity
        (se, se_size), (sp, sp_size) = map(_smoothed, (hit, clear))
        if hit.share + clear.share <= 1 or se + sp <= 1:
            raise SafeheadError(
                f"judge {self.judge['name']!r} has sensitivity {hit} and specificity {clear}: that "
                "is not known to be better than chance, so its shares say nothing. Label more"
            )
        share = _true_share(found.share, hit.share, clear.share)
        z2, n = Z_95**2, found.independent or found.total
        p, size = (n * found.share + z2 / 2) / (n + z2), n + z2
        middle = _true_share(p, se, sp)
        se_var, sp_var = se * (1 - se) / se_size, sp * (1 - sp) / sp_size
        shift = 2 * z2 * (middle * se_var - (1 - middle) * sp_var)
        spread = p * (1 - p) / size + middle**2 * se_var + (1 - middle) ** 2 * sp_var
        half = Z_95 * math.sqrt(spread) / (se + sp - 1)
        low, high = middle + shift - half, middle + shift + half
        return tuple(min(1.0, max(0.0, value)) for value in (share, low, high))  # type: ignore


def calibrate(
    judge: str | Judge, labelled: pd.DataFrame | Sequence[Mapping[str, Any]]
) -> Calibration:
    """Asks a judge of answers that people have labelled.

    Args:
        judge: as in `evaluate`.
        labelled: a row for each answer (one that comes again counts once), with `prompt`,
            `response`, and `success`: whether it is one by the people's label, as a truth value or
            0 and 1. A few dozen of each kind; their number is in the intervals.

    Raises:
        SafeheadError: if a column is missing, a label is none, one answer has two labels, or all
            labels are alike.

    Example:
        >>> rows = [("Take a rope, and pull it through the ring.", True), ("Sorry, no.", False)]
        >>> table = [{"prompt": "?", "response": said, "success": true} for said, true in rows]
        >>> print(sh.calibrate("keyword", table).sensitivity)
        1.00 [0.21, 1.00]
    """
    given: Any = labelled
    if not isinstance(given, pd.DataFrame | Sequence) or isinstance(given, str):
        raise SafeheadError(f"labelled={given!r} is no table: give what pd.read_csv makes of it")
    chosen, rows = resolve_judge(judge), pd.DataFrame(given)
    for column in ("prompt", "response", "success"):
        if column not in rows.columns:
            given = ", ".join(map(str, rows.columns)) or "none"
            raise SafeheadError(f"labelled rows need a column {column!r}: there is {given}")
    wrong = [label for label in rows["success"] if pd.isna(label) or label not in (0, 1)]
    if wrong:
        raise SafeheadError(f"the label {wrong[0]!r} in 'success' is neither true nor false")
    rows = rows.drop_duplicates(["prompt", "response", "success"])
    twice = rows[rows.duplicated(["prompt", "response"])]
    if len(twice):
        raise SafeheadError(f"the answer {twice['response'].iloc[0]!r} is labelled both ways")
    labels = [bool(label) for label in rows["success"]]
    if len(set(labels)) < 2:
        raise SafeheadError(
            f"all {len(rows)} labels are alike: give answers that are a success, and others"
        )
    verdicts = judged(chosen, rows["prompt"].tolist(), rows["response"].tolist())
    said = [verdict.success for verdict in verdicts]
    right = [one == label for one, label in zip(said, labels, strict=True)]
    hits = [one for one, label in zip(right, labels, strict=True) if label]
    clear = [one for one, label in zip(right, labels, strict=True) if not label]
    return Calibration(chosen.describe(), *(Rate(sum(some), len(some)) for some in (hits, clear)))


def _true_share(found: float, sensitivity: float, specificity: float) -> float:
    return (found + specificity - 1) / (sensitivity + specificity - 1)


def _smoothed(rate: Rate) -> tuple[float, float]:
    """A share with one success and one failure more, and out of how many."""
    size = rate.total + 2.0
    return (rate.successes + 1) / size, size

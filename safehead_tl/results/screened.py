"""What screening found: all heads to first order, and how its short list ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from safehead_tl.heads import Head

Ending: TypeAlias = Literal["sure", "budget", "all"]


@dataclass(frozen=True, eq=False)
class Screened:
    """What screening found, beside the exact scores of the short list.

    Attributes:
        values: the screened score of every head, in the unit of the exact ones; NaN where a head
            was no candidate.
        exact: how many heads were scored exactly.
        ended: why no more heads were scored exactly: `"sure"` (so few of the top are expected to
            be missed), `"budget"`, or `"all"` (every head was).
        missed: how many heads of the top are expected among those without an exact score. It
            assumes that log-ratios of exact to screened scores are normal, and alike for them and
            for the lower half of the short list with the audited heads.
        cut: the lowest exact score of the top.
        spearman: rank correlation of screened and exact scores, over the heads that have both.
        audited: heads drawn at random to be scored exactly.
        surprises: those of them that turned out to be in the top.
        settings: what the screening was told.
    """

    values: Float[Tensor, "layer head"] = field(repr=False)
    exact: int
    ended: Ending
    missed: float
    cut: float
    spearman: float
    audited: tuple[Head, ...]
    surprises: tuple[Head, ...]
    settings: Mapping[str, Any]

    def ranked(self) -> list[tuple[Head, float]]:
        """All candidates with their screened scores, the highest first."""
        places = (~self.values.isnan()).nonzero().tolist()
        scored = [(Head(*place), float(self.values[tuple(place)])) for place in places]
        return sorted(scored, key=lambda pair: (-pair[1], pair[0]))

    def counts(self) -> str:
        """How many heads were scored exactly."""
        return f"{self.exact} of {len(self.ranked())} heads scored exactly"

    def sentence(self) -> str:
        """How the short list ended, and what to do about it."""
        top = self.settings["top"]
        which = f"the top {top}" if top > 1 else "the highest head"
        if self.ended == "all":
            found = "That is all of them."
        elif self.ended == "sure":
            found = f"{which[0].upper()}{which[1:]} should be right: {self._expected()}."
        else:
            found = (
                f"The short list is as long as it may be, and {which} may not be right: "
                f"{self._expected()}. Raise the budget, or use screen='off'."
            )
        if self.surprises:
            named = ", ".join(map(str, self.surprises))
            found += f" Screening had missed {named}, drawn at random: use screen='off'."
        return f"Screened: {self.counts()}. {found}"

    def _expected(self) -> str:
        missed = "under 0.001" if self.missed < 0.001 else f"{self.missed:.2g}"
        return f"{missed} of its heads are expected to be missed"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON can hold it."""
        return {
            "exact": self.exact,
            "ended": self.ended,
            "missed": self.missed,
            "cut": self.cut,
            "spearman": None if math.isnan(self.spearman) else self.spearman,
            "audited": [str(head) for head in self.audited],
            "surprises": [str(head) for head in self.surprises],
            "settings": dict(self.settings),
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any], values: Tensor) -> Screened:
        """From what `to_dict` gave, and the values."""
        heads = {name: tuple(map(Head.parse, told[name])) for name in ("audited", "surprises")}
        spearman = math.nan if told["spearman"] is None else told["spearman"]
        return cls(values=values, **{**told, "spearman": spearman, **heads})

"""Screening: which heads are worth an exact score, and when enough of them have one.

Screened scores of all heads are cheap and approximate. A short list, those that screen highest, is
scored exactly, and grows until no other head is likely to belong among the top. What "likely" means
is estimated from how far the exact scores were from the screened ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from scipy.special import stdtr
from torch import Tensor

from safehead_tl._errors import SafeheadError
from safehead_tl._heads import Head

NEGLIGIBLE = 0.01
"""Scores below this share of the cut are not told apart: there, ratios are of rounding errors."""


@dataclass(frozen=True)
class Screening:
    """How heads are screened.

    Attributes:
        top: how many of the highest heads must be right; `None`: 10, in Sahara's steps 1.
        first: the short list's length at first, at least `top`; `None`: 16, or 8/5 of `top` if
            that is more.
        budget: the longest it may grow; `None`: a quarter of the heads, or four times `first`.
        audit: heads that are drawn at random from the others and scored exactly too.
        tolerance: how many heads of the top may be expected to be missed.
        probes: random directions in the space of logits that Ships follows.
        directions: singular vectors beyond the rank that generalized Ships follows.
        seed: of probes and audit.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> few = sh.Screening(top=2, first=4, budget=8, audit=2)
        >>> scores = sh.ships(model, prompts, template="chat", screen=few)
        >>> [str(head) for head, _ in scores.top(2)]
        ['L1H3', 'L2H6']
    """

    top: int | None = None
    first: int | None = None
    budget: int | None = None
    audit: int = 6
    tolerance: float = 0.05
    probes: int = 8
    directions: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("top", 1), ("first", 1), ("budget", 1), ("audit", 0), ("probes", 1)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise SafeheadError(f"{name}={value!r}: give a number from {least}")
        if not (isinstance(self.directions, int) and self.directions >= 0):
            raise SafeheadError(f"directions={self.directions!r}: give a number from 0")
        if not 0 < self.tolerance < math.inf:
            raise SafeheadError(f"tolerance={self.tolerance}: give a number of heads above 0")
        if self.first is not None and self.budget is not None and self.budget < self.first:
            raise SafeheadError(
                f"budget={self.budget} is less than first={self.first}: the short list cannot "
                "shrink"
            )

    def limits(self, top: int, candidates: int) -> Limits:
        """With numbers in place of `None`.

        Args:
            top: what `top` is unless it is given.
            candidates: how many heads there are.
        """
        top = min(self.top or top, candidates, self.budget or candidates)
        first = max(self.first or max(16, 8 * top // 5), top)
        budget = self.budget or max(4 * first, candidates // 4)
        return Limits(top, min(first, budget), budget)


@dataclass(frozen=True)
class Limits:
    """How long a short list is.

    Attributes:
        top: how many of the highest heads must be right.
        first: its length at first.
        budget: the longest it may grow.
    """

    top: int
    first: int
    budget: int


Screen: TypeAlias = Literal["off", "auto"] | int | Screening


def resolve_screen(screen: Screen) -> Screening | None:
    """What `screen=` means; `None` is every head exactly.

    Raises:
        SafeheadError: if it is nothing known.
    """
    if screen == "off":
        return None
    if screen == "auto":
        return Screening()
    if isinstance(screen, Screening):
        return screen
    if isinstance(screen, int) and not isinstance(screen, bool) and screen >= 1:
        return Screening(first=screen, budget=screen)
    raise SafeheadError(
        f"screen={screen!r} is not known: use 'off', 'auto', how many heads to score exactly, or a "
        "Screening"
    )


Ending: TypeAlias = Literal["sure", "budget", "all"]


def screening_settings(screening: Screening | None) -> dict[str, Any]:
    """What a result's provenance says of it; nothing if there is none."""
    return {} if screening is None else {"screening": asdict(screening)}


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


def expected_missed(
    others: Float[Tensor, " other"],
    screened: Float[Tensor, " head"],
    exact: Float[Tensor, " head"],
    cut: float,
) -> float:
    """How many of the other heads would reach the cut, if they were scored exactly.

    Log-ratios of exact to screened score are taken to be normal, with the mean and spread of the
    heads to compare with, so that another head's follows a t distribution. Scores below a hundredth
    of the cut count as equal.

    Args:
        others: screened scores of the heads without an exact one.
        screened: screened scores of the heads to compare with.
        exact: their exact scores.
        cut: the lowest exact score of the top.
    """
    if not len(others):
        return 0.0
    count = len(exact)
    if cut <= 0 or count < 2:
        return float(len(others))
    floor = NEGLIGIBLE * cut
    ratios = ((exact.clamp(min=0) + floor) / (screened.clamp(min=0) + floor)).log()
    needed = ((cut + floor) / (others.clamp(min=0) + floor)).log()
    spread = ratios.std().clamp(min=1e-6) * math.sqrt(1 + 1 / count)
    chances = stdtr(count - 1, -((needed - ratios.mean()) / spread).numpy())
    return float(chances.sum())


def draw_audit(heads: Sequence[Head], count: int, seed: int) -> tuple[Head, ...]:
    """Heads drawn at random, without repeats."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(heads), generator=draw)[:count].tolist()
    return tuple(sorted(heads[number] for number in order))

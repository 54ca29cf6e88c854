"""Screening: which heads are worth an exact score, and when enough of them have one.

Screened scores of all heads are cheap and approximate. A short list, those that screen highest, is
scored exactly, and grows until no other head is likely to belong among the top. What "likely" means
is estimated from how far the exact scores were from the screened ones. That is no more than an
estimate, so the others are then ablated together, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from scipy.special import stdtr
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head

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
        blocks: most blocks that the heads left out are ablated in; 0: none. Halves of those that
            move too much come on top, four times as many at most.
        points: where gradients are taken on the way to all heads ablated, for a second order to
            look for heads in; 0: none.
        probes: random directions in the space of logits that Ships follows.
        directions: singular vectors beyond the rank that generalized Ships follows.
        seed: of probes and audit.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> few = sh.Screening(top=2, first=4, budget=8, audit=2)
        >>> scores = sh.ships(model, prompts, screen=few)
        >>> [str(head) for head, _ in scores.top(2)]
        ['L1H3', 'L2H6']
    """

    top: int | None = None
    first: int | None = None
    budget: int | None = None
    audit: int = 6
    tolerance: float = 0.05
    blocks: int = 12
    points: int = 2
    probes: int = 4
    directions: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("top", "first", "budget", "probes", "audit", "blocks", "points", "directions"):
            value, least = getattr(self, name), int(name in ("top", "first", "budget", "probes"))
            optional = value is None and name in ("top", "first", "budget")
            if not optional and not (isinstance(value, int) and value >= least):
                raise SafeheadError(f"{name}={value!r}: give a number from {least}")
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
        return Screening(first=screen, budget=screen, blocks=0)
    raise SafeheadError(
        f"screen={screen!r} is not known: use 'off', 'auto', how many heads to score exactly, or a "
        "Screening"
    )


def screening_settings(screening: Screening | None) -> dict[str, Any]:
    """What a result's provenance says of it; nothing if there is none."""
    return {} if screening is None else {"screening": asdict(screening)}


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

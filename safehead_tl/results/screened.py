"""What screening found: all heads to first order, and what is known of those left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from jaxtyping import Float
from scipy.special import betaincinv
from torch import Tensor

from safehead_tl.heads import Head

HEADS = ("found", "audited", "surprises")

Ending: TypeAlias = Literal["blocks", "estimate", "open", "all"]


@dataclass(frozen=True, eq=False)
class Screened:
    """What screening found, beside the exact scores of the short list.

    Attributes:
        values: the screened score of every head, in the unit of the exact ones; NaN where a head
            was no candidate.
        exact: how many heads were scored exactly.
        runs: how many blocks of the others were ablated together, and halves of blocks.
        cleared: heads of blocks that move less than `cut`.
        explained: heads left in blocks that move more, but no more than twice what their screened
            scores add up to (root of the sum of squares for angles).
        limit: twice that, for the largest of these: a head that moves more would show.
        unopened: heads left in blocks that move more than that, for which no runs were left.
        ended: what is known of the heads without an exact score: `"blocks"` (all were cleared),
            `"estimate"` (those that were not are expected to hold next to nothing of the top),
            `"open"` (they may: the list is as long as it may be, blocks stay unopened, or a head
            of the top was one that screening had not seen), or `"all"` (there are none).
        missed: how many heads of the top are expected among those neither scored nor cleared. It
            assumes that log-ratios of exact to screened scores are normal, and alike for them and
            for the lower half of the short list with the audited heads.
        cut: the lowest exact score of the top.
        spearman: rank correlation of screened and exact scores, over the heads that have both.
        found: heads of the top that blocks led to.
        audited: heads drawn at random to be scored exactly, from those outside the first list.
        drawn: how many of them the list did not reach by itself.
        surprises: those of these that turned out to be in the top.
        settings: what the screening was told.
    """

    values: Float[Tensor, "layer head"] = field(repr=False)
    exact: int
    runs: int
    cleared: int
    explained: int
    limit: float
    unopened: int
    ended: Ending
    missed: float
    cut: float
    spearman: float
    found: tuple[Head, ...]
    audited: tuple[Head, ...]
    drawn: int
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

    @property
    def bound(self) -> float:
        """What share of heads that the list did not reach may be in the top, by the audit alone.

        The upper end of a one-sided 95 % Clopper-Pearson interval: nothing is assumed but that the
        audited heads were drawn at random.
        """
        hits = len(self.surprises)
        return 1.0 if hits == self.drawn else float(betaincinv(hits + 1, self.drawn - hits, 0.95))

    def sentence(self) -> str:
        """What was done, what is known by it, and what to do about the rest."""
        if self.ended == "all":
            return f"Screened: {self.counts()}. That is all of them."
        top, left = self.settings["top"], len(self.ranked()) - self.exact - self.cleared
        which = f"the top {top}" if top > 1 else "the top"
        text = f"Screened: {self.counts()}. "
        if self.runs:
            blocks = {
                f"move less than the lowest of {which} alone": self.cleared,
                "move up to twice what screened scores add up to (one above "
                f"{self.limit:.2g} would show)": self.explained,
                "move more, and were not opened": self.unopened,
            }
            told = [f"{count} in blocks that {what}" for what, count in blocks.items() if count]
            text += (
                f"The others were ablated together: {', '.join(told)}, unless heads undo each "
                "other there. "
            )
        unseen = ", ".join(map(str, (*self.found, *self.surprises)))
        if left and unseen:
            text += f"Screening had not seen {unseen}, so of {left} left it says nothing. "
        elif left:
            few = "under 0.001" if self.missed < 0.001 else f"{self.missed:.2g}"
            text += f"By extrapolation {few} heads of {which} are among {left} left; "
        text += (
            f"{len(self.surprises)} of {self.drawn} drawn at random are in {which}, which by "
            f"itself says that at most {self.bound:.0%} of the rest are (95 %)."
        )
        if self.ended == "open":
            text += " There may be more: raise budget or blocks, or use screen='off'."
        return text

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON can hold it."""
        told = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        heads = {name: [str(head) for head in told[name]] for name in HEADS}
        spearman = None if math.isnan(self.spearman) else self.spearman
        return {**told, **heads, "spearman": spearman, "settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any], values: Tensor) -> Screened:
        """From what `to_dict` gave, and the values."""
        heads = {name: tuple(map(Head.parse, told[name])) for name in HEADS}
        spearman = math.nan if told["spearman"] is None else told["spearman"]
        return cls(values=values, **{**told, "spearman": spearman, **heads})

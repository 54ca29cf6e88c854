"""Heads that score higher in some prompts than in others: a null where nothing is planted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.results.drawing import figures
from safehead_tl.results.stats import shuffled_p

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from safehead_tl.results.scores import HeadScores

FLOOR = 1e-9
"""The least divergence whose logarithm is taken, in nats: what is below it is rounding."""

OF_PROMPTS = ("prompt_count", "prompts_hash", "tokens_hash", "each_hash")
OF_OUTCOME = ("sum", "whole", "unablated")
OF_PLACE = ("name", "revision", "weights", "device")


@dataclass(frozen=True, eq=False)
class Significance:
    """Which heads score higher in prompts than in others, as `HeadScores.significant` gives it.

    Attributes:
        scores: the scores.
        against: the same in the other prompts.
        statistic: Welch's t of each head; NaN where it was not scored.
        p: p-values, which hold for all heads at once.
        alpha: the chance of one false head or more that is put up with.
        draws: how many random ways to share prompts out were drawn.
        seed: of the draws.
    """

    scores: HeadScores
    against: HeadScores
    statistic: Float[Tensor, "layer head"] = field(repr=False)
    p: Float[Tensor, "layer head"] = field(repr=False)
    alpha: float
    draws: int
    seed: int

    @classmethod
    def of(
        cls, scores: HeadScores, against: HeadScores, alpha: float, draws: int, seed: int
    ) -> Significance:
        """Tests all heads that were scored."""
        if not (isinstance(draws, int) and draws >= 1):
            raise SafeheadError(f"draws={draws!r}: give a number from 1")
        if not 0 < alpha < 1:
            raise SafeheadError(f"alpha={alpha!r}: give a chance between 0 and 1, such as 0.05")
        first, second = _comparable(scores, against)
        ways = min(math.comb(len(first) + len(second), len(first)), draws + 1)
        if min(len(first), len(second)) < 2 or ways * alpha < 1:
            raise SafeheadError(
                f"of {len(first)} prompts and {len(second)} others no head can have p <= {alpha:g} "
                f"in {draws} draws: give more prompts, at least 2 of either, or more draws"
            )
        scored = ~scores.values.isnan()
        statistic, p = (torch.full(scored.shape, torch.nan, dtype=torch.double) for _ in range(2))
        statistic[scored], p[scored] = shuffled_p(first[:, scored], second[:, scored], draws, seed)
        return cls(scores, against, statistic, p, alpha, draws, seed)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads with p at most `alpha`, the highest score first."""
        return tuple(head for head, _ in self.scores.ranked() if self.p[head] <= self.alpha)

    def sentence(self) -> str:
        """What was found, and what it does not say."""
        heads, others = self.heads, self.against.provenance.prompts["prompt_count"]
        named = ", ".join(map(str, heads[:12])) + (", ..." if len(heads) > 12 else "")
        return (
            f"{len(heads)} of {len(self.scores.ranked())} heads score higher than in {others} "
            f"other prompts{f' ({named})' if heads else ''}: p <= {self.alpha:g} for all heads at "
            "once. "
            "They tell the two sets apart, by harm or by whatever else differs, such as the topic."
        )

    def __repr__(self) -> str:
        return f"<Significance: {self.sentence().partition(':')[0]}>"

    def to_frame(self) -> pd.DataFrame:
        """All scored heads, the highest score first.

        Returns:
            Columns `layer, head, name, kv_group, score, rank, against, t, p, significant`;
            `against` is the score in the other prompts.
        """
        table = self.scores.to_frame()
        places = list(zip(table["layer"], table["head"], strict=True))
        columns = {"against": self.against.values, "t": self.statistic, "p": self.p}
        for name, values in columns.items():
            table[name] = [float(values[place]) for place in places]
        return table.assign(significant=table["p"] <= self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores as plain values."""
        return {
            "heads": self.to_frame()[["name", "against", "t", "p"]].to_dict("records"),
            "significant": [str(head) for head in self.heads],
            **{name: getattr(self, name) for name in ("alpha", "draws", "seed")},
            "against": self.against.provenance.to_dict(),
        }

    def bars(
        self, top: int = 20, *, marked: HeadsLike = (), marked_as: str = "marked"
    ) -> go.Figure:
        """Draws the scores as `HeadScores.bars` does, with a star at each significant head.

        Args:
            top: how many heads.
            marked: heads to show in another colour.
            marked_as: what these heads are, for the legend.
        """
        chosen = parse_heads(marked, *self.p.shape)
        return figures.bars_figure(self.scores, top, chosen, marked_as, self)


def _comparable(
    scores: HeadScores, against: HeadScores
) -> tuple[Float[Tensor, "prompt layer head"], Float[Tensor, "other_prompt layer head"]]:
    """What is compared in each prompt: logarithms of divergences, other scores as they are.

    Raises:
        SafeheadError: if anything but the prompts differs, or prompts have no scores of their own.
    """
    if not isinstance(against, type(scores)):
        raise SafeheadError(
            f"against is a {type(against).__name__}: give HeadScores by the same measure, in other "
            "prompts"
        )
    first, second = scores.per_prompt, against.per_prompt
    if first is None or second is None:
        raise SafeheadError(
            f"{scores.measure} is one score for all prompts, which cannot change sets: give ships "
            "or refusal_log_odds, and evaluate a group's heads together"
        )
    if scores.screening is not None or against.screening is not None:
        raise SafeheadError("a short list was chosen by these prompts: scan with screen='off'")
    for what, mine, theirs in zip(
        ("measure", "model", "ablation", "template", "settings"),
        _identity(scores),
        _identity(against),
        strict=True,
    ):
        if mine != theirs:
            raise SafeheadError(
                f"against has another {what}: score both sets of prompts in the same way, and by "
                "the same reference or openings if there are any"
            )
    if not torch.equal(scores.values.isnan(), against.values.isnan()):
        raise SafeheadError("against has scores of other heads: score the same heads in both")
    known, others = (
        set(each.provenance.prompts.get("each_hash", "").split()) for each in (scores, against)
    )
    if known & others:
        raise SafeheadError(
            f"{len(known & others)} prompts are in both sets: give each prompt to one of them"
        )
    if scores.measure == "ships":
        first, second = (each.clamp(min=FLOOR).log() for each in (first, second))
    return first, second


def _identity(scores: HeadScores) -> tuple[str, ...]:
    """What was measured, by parts, without the prompts: as JSON has it, for those from files."""

    def told(found: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
        kept = {key: value for key, value in found.items() if key not in without}
        return json.dumps(kept, sort_keys=True, default=str)

    made = scores.provenance
    return (
        scores.measure,
        told(made.model, OF_PLACE),
        told(made.ablation),
        told(made.prompts, OF_PROMPTS),
        told(made.settings, OF_OUTCOME),
    )

"""One score for every head, as a scan returns it, with its provenance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadLike, HeadsLike, parse_heads
from safehead_tl.results.drawing import Scale, figures
from safehead_tl.results.files import Saved
from safehead_tl.results.per_query import PerQuery
from safehead_tl.results.provenance import Provenance
from safehead_tl.results.screened import Screened
from safehead_tl.results.significance import Significance

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class HeadScores(Saved):
    """One score for every head; larger means that ablating it changes more.

    Attributes:
        measure: what the score is, such as `"ships"`: the name of the function that gave it.
        unit: `"nats"`, `"radians"`, or what else the measure is in.
        values: the scores; the mean over prompts where these have their own. NaN where a head was
            not scored.
        per_prompt: the scores of each prompt; `None` for a measure of the whole data set.
        given: heads that were ablated together with each scored one.
        provenance: what it was computed from.
        screening: with `screen=`, the screened scores of all heads and how the short list ended;
            only heads of the short list have `values` then.
        signed: whether scores have a sign: above 0, the head carries refusal; below, it works
            against it.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> scores = sh.ships(model, prompts)
        >>> head, score = scores.top(1)[0]
        >>> head, scores[head] == score == float(scores.values[1, 3])
        (Head(layer=1, head=3), True)
        >>> scores.per_prompt.shape
        torch.Size([4, 4, 8])
        >>> scores.to_frame()["name"].tolist()[:2]
        ['L1H3', 'L2H6']
        >>> scores.save("scores.safetensors")
        >>> sh.HeadScores.load("scores.safetensors")[head] == score
        True
    """

    measure: str
    unit: str
    values: Float[Tensor, "layer head"]
    per_prompt: Float[Tensor, "prompt layer head"] | None
    given: tuple[Head, ...]
    provenance: Provenance
    screening: Screened | None = None
    signed: bool = False

    @property
    def best_known(self) -> Float[Tensor, "layer head"]:
        """The exact scores, and where screening gave none the screened ones."""
        if self.screening is None:
            return self.values
        return self.values.where(~self.values.isnan(), self.screening.values)

    def ranked(self) -> list[tuple[Head, float]]:
        """All scored heads with their scores, the highest first; ties by layer, then head."""
        scored = [
            (Head(layer, head), value)
            for layer, row in enumerate(self.values.tolist())
            for head, value in enumerate(row)
            if not math.isnan(value)
        ]
        return sorted(scored, key=lambda pair: (-pair[1], pair[0]))

    def top(self, count: int = 10) -> list[tuple[Head, float]]:
        """The `count` heads with the highest scores, with their scores."""
        if count < 0:
            raise SafeheadError(f"top({count}): ask for 0 heads or more")
        return self.ranked()[:count]

    def per_query(self, count: int = 1) -> PerQuery:
        """Each prompt's own `count` highest heads, for `evaluate(heads=...)` (paper Fig. 2).

        Ties go by layer, then head.

        Raises:
            SafeheadError: if prompts have no scores of their own, or fewer heads than `count` were
                scored; after screening, because a prompt's highest head may not be on the short
                list of all.

        Example:
            >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
            >>> own = sh.ships(model, prompts).per_query(1)
            >>> print(sh.evaluate(model, prompts, heads=own, max_new_tokens=32, controls=0).asr)
            1.00 [0.51, 1.00]
        """
        if self.per_prompt is None:
            raise SafeheadError(
                f"{self.measure} is one score for all prompts: it has none for each to choose by"
            )
        if self.screening is not None:
            raise SafeheadError(
                "a prompt's own highest head may not be on the short list: scan with screen='off'"
            )
        scored = sorted(head for head, _ in self.ranked())
        if not (isinstance(count, int) and 1 <= count <= len(scored)):
            raise SafeheadError(f"per_query({count!r}): ask for 1 to {len(scored)} heads")
        groups = tuple(
            tuple(sorted(scored, key=lambda head: -own[head.layer][head.head])[:count])
            for own in self.per_prompt.tolist()
        )
        return PerQuery(groups, self.measure, self.provenance)

    def significant(
        self, against: HeadScores, *, alpha: float = 0.05, draws: int = 10_000, seed: int = 0
    ) -> Significance:
        """Which heads score higher here than in other prompts, such as harmless ones.

        The null: a head's score has the same law in both sets. Prompts change sets at random, for
        all heads together, and each head's Welch t is compared with the highest of those that are
        not above it (Westfall and Young 1993, step-down max T; docs/methods.md). Ships is compared
        by its logarithm, from 1e-9 nats on; other measures as they are.

        Args:
            against: the same measure in the other prompts; scored in the same way.
            alpha: the chance of one false head or more.
            draws: random ways to share prompts out; if there are no more ways than that, all are
                taken.
            seed: of the draws.

        Returns:
            One-sided p-values, which hold for all heads at once.

        Raises:
            SafeheadError: for a measure of all prompts together, a screened scan, scores that
                differ in more than the prompts, or too few of these.

        Example:
            >>> model = sh.load_model("demo")
            >>> scores, others = (
            ...     sh.ships(model, sh.load_prompts(f"demo/{kind}", limit=8))
            ...     for kind in ("harmful", "benign")
            ... )
            >>> [str(head) for head in scores.significant(others).heads]
            ['L1H3', 'L2H6']
        """
        return Significance.of(self, against, alpha, draws, seed)

    def __getitem__(self, head: HeadLike) -> float:
        """The score of one head, in any spelling; NaN if it was not scored."""
        (chosen,) = parse_heads(Head.parse(head), *self.values.shape)
        return float(self.values[chosen])

    def __iter__(self) -> Iterator[tuple[Head, float]]:
        """Heads with their scores, as `ranked` has them."""
        return iter(self.ranked())

    def __repr__(self) -> str:
        best = ", ".join(f"{head} {score:.4g}" for head, score in self.top(3))
        screened = "" if self.screening is None else f"; {self.screening.counts()}"
        return f"<HeadScores: {self.measure} in {self.unit}, highest: {best}{screened}>"

    def to_frame(self, per_prompt: bool = False) -> pd.DataFrame:
        """The scores as a tidy table, highest first.

        Args:
            per_prompt: one row for each prompt and head instead of one for each head.

        Returns:
            Columns `layer, head, name, kv_group, score, rank`; with `per_prompt` also `prompt`,
            its index. Heads with the same `kv_group` in a layer share a key/value head. After
            screening (and without `per_prompt`) also `screened`, and heads without an exact score
            come last, by that.

        Raises:
            SafeheadError: if `per_prompt` is asked of a measure that has none.
        """
        rank = {head: number for number, (head, _) in enumerate(self.ranked(), 1)}
        if not per_prompt:
            rows = [{**self._named(head), "score": score} for head, score in self.ranked()]
            table = pd.DataFrame(rows).assign(rank=list(rank.values()))
            return table if self.screening is None else self._with_screened(table)
        if self.per_prompt is None:
            raise SafeheadError(
                f"{self.measure} is one score for all prompts: it has none for each"
            )
        return pd.DataFrame(
            [
                {
                    "prompt": prompt,
                    **self._named(head),
                    "score": scores[head.layer][head.head],
                    "rank": rank[head],
                }
                for prompt, scores in enumerate(self.per_prompt.tolist())
                for head in rank
            ]
        )

    def _with_screened(self, table: pd.DataFrame) -> pd.DataFrame:
        assert self.screening is not None
        screened = self.screening.ranked()
        others = [{**self._named(head)} for head, _ in screened if math.isnan(self[head])]
        table = pd.concat([table, pd.DataFrame(others)], ignore_index=True)
        by_name = {str(head): score for head, score in screened}
        return table.assign(rank=table["rank"].astype("Int64"), screened=table["name"].map(by_name))

    @property
    def heads_per_kv_group(self) -> int:
        """How many query heads share a key/value head: 1 without grouped-query attention."""
        model = self.provenance.model
        return int(model["n_heads"] // model["n_key_value_heads"])

    def _named(self, head: Head) -> dict[str, Any]:
        kv_group = head.head // self.heads_per_kv_group
        return {"layer": head.layer, "head": head.head, "name": str(head), "kv_group": kv_group}

    def to_dict(self) -> dict[str, Any]:
        """Scores and provenance as plain values; `heads` is sorted, the highest score first."""
        return {
            "measure": self.measure,
            "unit": self.unit,
            "signed": self.signed,
            "heads": scored_heads(self.ranked()),
            "given": [str(head) for head in self.given],
            **self._screening_told(),
            "provenance": self.provenance.to_dict(),
        }

    def _screening_told(self) -> dict[str, Any]:
        if self.screening is None:
            return {}
        heads = scored_heads(self.screening.ranked())
        return {"screening": {**self.screening.to_dict(), "heads": heads}}

    def heatmap(
        self,
        marked: HeadsLike = (),
        *,
        marked_as: str = "marked",
        top: int = 3,
        marginals: bool | Literal["mean", "max"] = True,
        scale: Scale | None = None,
    ) -> go.Figure:
        """Draws the scores, layer by head.

        Args:
            marked: heads to mark with a cross.
            marked_as: what these heads are, for the legend; such as `"planted"`.
            top: how many of the highest scores to outline.
            marginals: a bar for each layer at the right: its heads' mean score (also `True`) or
                their highest; `False` for none.
            scale: how scores become colours: in proportion, by their square root, by logarithm
                over four decades, or by rank. By default by square root, and shares of responses
                in proportion. The scale beside the cells has true scores on it.

        Raises:
            SafeheadError: if a marked head does not exist, or there is no such scale.

        Example:
            >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
            >>> scores = sh.ships(model, prompts)
            >>> scores.heatmap(["L1H3", "L2H6"], marked_as="planted").write_html("heatmap.html")
        """
        chosen = parse_heads(marked, *self.values.shape)
        statistic = "mean" if marginals is True else marginals or None
        return figures.heatmap_figure(self, chosen, marked_as, top, statistic, scale)

    def bars(
        self, top: int = 20, *, marked: HeadsLike = (), marked_as: str = "marked"
    ) -> go.Figure:
        """Draws the highest scores as ranked bars, with medians over prompts and their intervals.

        The bar is the score: the mean over prompts. The 95 % interval is of the median, from the
        k-th lowest prompt to the k-th highest, which holds whatever the law of the scores. No
        interval of the mean does: of a few prompts none says how high the rare ones are. Prompts
        are taken to be independent, and heads not to be chosen. With fewer than six prompts there
        are dots instead; a measure of all prompts together has neither, and the figure says so.

        Args:
            top: how many heads.
            marked: heads to show in another colour.
            marked_as: what these heads are, for the legend.

        Raises:
            SafeheadError: if a marked head does not exist, or `top` is below 1.
        """
        return figures.bars_figure(self, top, parse_heads(marked, *self.values.shape), marked_as)

    def strips(
        self, top: int = 10, *, log: bool = False, marked: HeadsLike = (), marked_as: str = "marked"
    ) -> go.Figure:
        """Draws each prompt's score of the highest heads: whether all move, or a few.

        Args:
            top: how many heads.
            log: a logarithmic axis, for long tails; scores below 1e-9 nats are drawn there.
            marked: heads to show in another colour.
            marked_as: what these heads are, for the legend.

        Raises:
            SafeheadError: for a measure of all prompts together; if a marked head does not exist,
                or `top` is below 1.
        """
        return figures.strips_figure(
            self, top, log, parse_heads(marked, *self.values.shape), marked_as
        )

    def slope(
        self, after: HeadScores, top: int = 8, *, names: tuple[str, str] = ("before", "after")
    ) -> go.Figure:
        """Draws how the highest heads change places from this scan to another.

        Such as one of the model that `export` wrote: if another head carries the refusal now, it
        has risen.

        Args:
            after: the other scan, by the same measure, of a model with as many layers and heads.
            top: how many of the highest heads of each.
            names: what the two scans are called.

        Raises:
            SafeheadError: if measure or size differ, or `top` is below 1.
        """
        return figures.slope_figure(self, after, top, names)

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        screened = None if self.screening is None else self.screening.values
        found = {"values": self.values, "per_prompt": self.per_prompt, "screened": screened}
        header = {
            "measure": self.measure,
            "unit": self.unit,
            "signed": self.signed,
            "given": [str(head) for head in self.given],
            "screening": self.screening and self.screening.to_dict(),
            "provenance": self.provenance.to_dict(),
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> HeadScores:
        told = header.get("screening")
        return cls(
            measure=header["measure"],
            unit=header["unit"],
            values=tensors["values"],
            per_prompt=tensors.get("per_prompt"),
            given=tuple(Head.parse(head) for head in header["given"]),
            provenance=Provenance(**header["provenance"]),
            screening=told and Screened.from_dict(told, tensors["screened"]),
            signed=header["signed"],
        )


def scored_heads(pairs: Iterable[tuple[Head, float]]) -> list[dict[str, Any]]:
    """Heads with their scores as plain values."""
    return [{"layer": head.layer, "head": head.head, "score": score} for head, score in pairs]

"""Heads two by two: what each still does when another is ablated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike, parse_heads, read_heads
from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.odds import LogOdds
from safehead_tl.measures.openings import Openings
from safehead_tl.measures.rotation import Rotation, rotation_settings
from safehead_tl.models import Model, Site, why_not_finite
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import Provenance, Saved, Scale, figures
from safehead_tl.scan import Beside, Run, Search, anywhere

if TYPE_CHECKING:
    import plotly.graph_objects as go

LARGE = 0.5
"""A head is gated if another's ablation takes so much of its effect, and a backup if without the
other so much of its effect would be missing."""

LEAST = 0.1
"""... if that is also such a share of the largest score of the map."""

PairMeasure: TypeAlias = Literal["ships", "generalized_ships"]


@dataclass(frozen=True, eq=False)
class Knockout(Saved):
    """Scores of heads alone and two by two, and what each of a pair does without the other.

    Attributes:
        heads: the heads, by layer.
        measure: what the scores are: `"ships"`, `"generalized_ships"` or `"refusal_log_odds"`.
        unit: `"nats"` or `"radians"`.
        signed: whether scores have a sign, as refusal log-odds have.
        alone: each head's score by itself.
        together: scores of pairs, both ablated; on the diagonal `alone`.
        apart: what `together` would be if neither head acted through the other, nor both through
            a third: if what each does to the last states only added up.
        provenance: what it was computed from.
    """

    heads: tuple[Head, ...]
    measure: str
    unit: str
    signed: bool
    alone: Float[Tensor, " head"]
    together: Float[Tensor, "first second"]
    apart: Float[Tensor, "first second"]
    provenance: Provenance

    @property
    def given(self) -> Float[Tensor, "first second"]:
        """What ablating the second still does once the first is ablated; NaN on the diagonal."""
        return _off_diagonal(self.together - self.alone[:, None])

    @property
    def change(self) -> Float[Tensor, "first second"]:
        """`given` less what the second does alone; the same for the first, so symmetric.

        Below 0, with scores above 0: they do one thing, of which the first's ablation has done
        part. Above 0: the second matters more when the first is gone.
        """
        return self.given - self.alone

    @property
    def beyond(self) -> Float[Tensor, "first second"]:
        """What of `change` is not there for heads that act apart; NaN on the diagonal.

        The Ships of two heads that push one way are more than the sum of both, and their angles
        less, without anything between them.
        """
        return _off_diagonal(self.together - self.apart)

    @property
    def gates(self) -> tuple[tuple[Head, Head], ...]:
        """Pairs of which the later head does at most half without the earlier: gate, amplifier.

        Half of what it would do if both acted apart, and the difference is at least a tenth of the
        largest score. It does not say that the later head *reads* the earlier one: two heads that
        a third needs both look the same.
        """
        return tuple(
            (self.heads[a], self.heads[b])
            for a, b, given, expected in self._compared()
            if abs(given) <= LARGE * abs(expected) and self.heads[a].layer < self.heads[b].layer
        )

    @property
    def backups(self) -> tuple[tuple[Head, Head], ...]:
        """Pairs of which each does at least twice as much when the other is gone.

        Twice what it would do if both acted apart, and the difference is at least a tenth of the
        largest score. Whether the later head steps in, or a third one is content with either,
        it does not say.
        """
        return tuple(
            (self.heads[a], self.heads[b])
            for a, b, given, expected in self._compared()
            if LARGE * abs(given) >= abs(expected)
        )

    def _compared(self) -> Iterator[tuple[int, int, float, float]]:
        """Of pairs that are not as if apart: what the second does without the first, and would."""
        least = LEAST * max(self.alone.abs().max(), self.together.abs().max())
        expected = self.apart - self.alone[:, None]
        for a, b in combinations(range(len(self.heads)), 2):
            if abs(self.beyond[a, b]) >= least > 0:
                yield a, b, float(self.given[a, b]), float(expected[a, b])

    def pairs(self) -> list[tuple[tuple[Head, Head], float]]:
        """All pairs with their scores, the highest first; ties by layer, then head."""
        found = [
            ((self.heads[a], self.heads[b]), float(self.together[a, b]))
            for a, b in combinations(range(len(self.heads)), 2)
        ]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))

    def __repr__(self) -> str:
        told = [f"{first} -> {second}" for first, second in self.gates]
        told += [f"{first} or {second}" for first, second in self.backups]
        return (
            f"<Knockout: {len(self.heads)} heads by {self.measure}; {', '.join(told) or 'apart'}>"
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each pair, the earlier head first, the highest score of a pair on top.

        Returns:
            Columns `first, second, first_alone, second_alone, together, given, change, apart,
            beyond, gate, backup`; the last two say whether it is one of `gates` or `backups`.
        """
        place = {head: number for number, head in enumerate(self.heads)}
        gates, backups = {*self.gates}, {*self.backups}
        return pd.DataFrame(
            [
                {
                    "first": str(first),
                    "second": str(second),
                    "first_alone": float(self.alone[place[first]]),
                    "second_alone": float(self.alone[place[second]]),
                    "together": score,
                    **{
                        name: float(getattr(self, name)[place[first], place[second]])
                        for name in ("given", "change", "apart", "beyond")
                    },
                    "gate": (first, second) in gates,
                    "backup": (first, second) in backups,
                }
                for (first, second), score in self.pairs()
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `pairs` has the rows of `to_frame`."""
        return {
            "measure": self.measure,
            "unit": self.unit,
            "signed": self.signed,
            "heads": [
                {"layer": head.layer, "head": head.head, "score": float(score)}
                for head, score in zip(self.heads, self.alone, strict=True)
            ],
            "pairs": self.to_frame().to_dict("records"),
            "provenance": self.provenance.to_dict(),
        }

    def figure(self, scale: Scale = "sqrt") -> go.Figure:
        """Draws how each head's effect changes without another, with arrows from gate to amplifier.

        Above the diagonal is `change`, below it `beyond`, on one scale with zero in the middle; on
        the diagonal each head's score alone.

        Args:
            scale: how numbers become colours, as in `HeadScores.heatmap`.
        """
        return figures.knockout_figure(self, scale)

    def heatmap(self, scale: Scale = "sqrt") -> go.Figure:
        """Draws the scores of pairs, and on the diagonal those of single heads.

        Args:
            scale: how scores become colours, as in `HeadScores.heatmap`.
        """
        return figures.pairs_figure(self, scale)

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        header = {
            "heads": [str(head) for head in self.heads],
            "measure": self.measure,
            "unit": self.unit,
            "signed": self.signed,
            "provenance": self.provenance.to_dict(),
        }
        return {"alone": self.alone, "together": self.together, "apart": self.apart}, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Knockout:
        return cls(
            heads=tuple(map(Head.parse, header["heads"])),
            measure=header["measure"],
            unit=header["unit"],
            signed=header["signed"],
            **tensors,
            provenance=Provenance(**header["provenance"]),
        )


@anywhere
def knockout(
    model: Model,
    prompts: Prompts,
    heads: HeadsLike,
    *,
    measure: PairMeasure = "ships",
    openings: Openings | None = None,
    rank: int = 1,
    centre: bool = False,
    site: Site = "final_norm",
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    run: Run = Run(),
) -> Knockout:
    """Scores heads alone and in all pairs: which carry one mechanism, and which are backups.

    With A ablated, ablating B does together(A, B) - alone(A). If that is less than B does alone,
    A's ablation has done part of it; if A's layer is below B's, A may be a *gate* and B its
    *amplifier*. If it is more, B is a *backup*, that steps in where A is gone. The same scores are
    an exhaustive search for the best pair of the list: `pairs()`.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`.
        heads: two heads or more, such as `scores.top(6)`. By themselves backups score low: look for
            those of a head with `ships(..., given=head)`, and add its highest.
        measure: `"ships"` or `"generalized_ships"`, which have no sign, and do not simply add up.
        openings: measure refusal log-odds instead, which have a sign, and add up where heads write
            to the last state side by side.
        rank: as in `generalized_ships`, and so the following two.
        centre: subtract the mean state first.
        site: where states are read.
        template: as in `ships`, and so the following.
        ablation: an ablation or its name.
        run: how it runs.

    Returns:
        The map. For k heads it costs k whole runs, and k (k - 1) / 2 from the later layer on.

    Raises:
        SafeheadError: as `ships`, `generalized_ships` and `refusal_log_odds`; or for fewer than two
            heads.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> openings = sh.Openings.of_answers(model, "demo/harmful", "demo/benign")
        >>> found = sh.knockout(model, prompts, ["L1H3", "L2H6", "L0H1"], openings=openings)
        >>> [(str(first), str(second)) for (first, second), _ in found.pairs()][0]
        ('L1H3', 'L2H6')
    """
    listed = read_heads(heads)
    name = measure if openings is None else "refusal_log_odds"
    if measure not in get_args(PairMeasure) or (openings is not None and measure != "ships"):
        raise SafeheadError(
            f"measure={measure!r}: use 'ships' or 'generalized_ships', or openings= without it"
        )

    def beside(config: Any) -> Beside:
        if openings is not None:
            found = LogOdds.beside(openings, None, config)
        elif measure == "generalized_ships":
            found = Rotation.beside(rank, "left", None, config)
        else:
            found = Divergence.beside(None, config)
        held = (len(listed) + 1) * config.d_model * 8
        return replace(found, a_prompt=found.a_prompt + held)

    search = Search.start(model, prompts, template, ablation, run, beside)
    chosen = tuple(sorted(parse_heads(listed, *search.shape)))
    if len(chosen) < 2:
        raise SafeheadError(f"{len(chosen)} heads: give two or more, which are ablated in pairs")
    settings: dict[str, Any] = {"heads": [str(head) for head in chosen], "of": name}
    if openings is not None:
        settings["openings"] = openings.describe(model)
    elif name == "generalized_ships":
        settings |= rotation_settings(search, rank, centre, site, "left")
    search.open_directory("knockout", settings, chosen)
    search.several = True
    if openings is not None:
        read: Divergence | Rotation | LogOdds = LogOdds(model, openings, search.original)
    elif name == "generalized_ships":
        read = Rotation.of(search, rank, centre, site)
    else:
        read = Divergence(model, search.original, search.passes, search.plan.budget)

    def score(states: Float[Tensor, "prompt d_model"]) -> float:
        moved = states.to(search.original)[None]
        return float(search.passes.fitted(lambda: read(moved)).mean())

    def last(head: Head) -> Tensor:
        inputs, states = {"group": [str(head)]}, partial(search.last, (head,))
        name = f"{search.piece_with((head,))}-last"
        found = search.ledger.kept(name, inputs, lambda: states().cpu())
        if not found.isfinite().all():
            raise SafeheadError(
                f"with {head} ablated the states are not finite numbers: {why_not_finite(model)}"
            )
        return found

    moved, original = list[Tensor](), search.original.cpu().double()
    together = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)
    apart = together.clone()
    for number, head in enumerate(chosen):
        moved.append(last(head).double() - original)
        together[number, number] = apart[number, number] = score(original + moved[-1])
        for earlier, other in enumerate(moved[:-1]):
            apart[earlier, number] = score(original + other + moved[-1])
        later = chosen[number + 1 :]
        if later:
            found = search.score(read, later, (head,), f"knockout, with {head} ablated").mean(0)
            together[number, number + 1 :] = found[tuple(zip(*later, strict=True))]
    return Knockout(
        heads=chosen,
        measure=name,
        unit=read.unit,
        signed=read.signed,
        alone=together.diagonal().clone(),
        together=together.triu() + together.triu(1).T,
        apart=apart.triu() + apart.triu(1).T,
        provenance=search.provenance(settings),
    )


def _off_diagonal(values: Float[Tensor, "first second"]) -> Float[Tensor, "first second"]:
    return values.clone().fill_diagonal_(torch.nan)

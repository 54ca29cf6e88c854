"""How far scans agree on which heads matter, and how far they would by chance."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.results import HeadScores, Provenance, figures, kendall, spearman

if TYPE_CHECKING:
    import plotly.graph_objects as go

logger = logging.getLogger("safehead_tl")

COLUMNS = (
    *("first", "second", "top", "n_heads", "shared", "jaccard", "expected_shared"),
    *("expected_jaccard", "p_at_least", "expected_by_layer", "p_by_layer"),
    *("spearman", "kendall", "heads"),
)


@dataclass(frozen=True)
class Pair:
    """How far two scans agree.

    Attributes:
        first: the name of one scan.
        second: the name of the other.
        heads: those that are among the top of both.
        jaccard: heads in both, of the heads in either; between 0 and 1.
        p_at_least: the probability that two sets of this size drawn at random share as many heads
            or more.
        expected_by_layer: how many heads the two tops share on average, if each keeps how many it
            has in each layer, and within layers is drawn at random.
        p_by_layer: the probability that such tops share as many heads or more.
        spearman: rank correlation over all heads, ties with their average rank; NaN if all scores
            of a scan are equal.
        kendall: the same as Kendall's tau-b.
    """

    first: str
    second: str
    heads: tuple[Head, ...]
    jaccard: float
    p_at_least: float
    expected_by_layer: float
    p_by_layer: float
    spearman: float
    kendall: float

    @property
    def shared(self) -> int:
        """How many heads are among the top of both."""
        return len(self.heads)

    def told(self) -> dict[str, Any]:
        """All that is known, by name."""
        return {**vars(self), "shared": self.shared}


@dataclass(frozen=True, eq=False)
class Overlap:
    """How far several scans agree, two by two.

    Attributes:
        names: the scans.
        top: how many heads of each are its top.
        n_heads: how many heads they are the top of: those that every scan scored.
        tops: each scan's top, the highest score first.
        pairs: all pairs of scans, in the order given.
        expected_shared: how many heads two random tops share, on average.
        expected_jaccard: the average of their Jaccard index.
        provenances: where each scan came from.
    """

    names: tuple[str, ...]
    top: int
    n_heads: int
    tops: Mapping[str, tuple[Head, ...]]
    pairs: tuple[Pair, ...]
    expected_shared: float
    expected_jaccard: float
    provenances: Mapping[str, Provenance]

    def __repr__(self) -> str:
        shared = ", ".join(f"{pair.first} and {pair.second} {pair.shared}" for pair in self.pairs)
        return f"<Overlap: of {self.top} heads, {shared}; {self.expected_shared:.2g} by chance>"

    @property
    def in_all(self) -> tuple[Head, ...]:
        """The heads that are among the top of every scan, in the first one's order."""
        first, *others = (self.tops[name] for name in self.names)
        return tuple(head for head in first if all(head in other for other in others))

    def to_frame(self) -> pd.DataFrame:
        """One row for each pair.

        Returns:
            Columns `first, second, top, n_heads, shared, jaccard, expected_shared,
            expected_jaccard, p_at_least, expected_by_layer, p_by_layer, spearman, kendall, heads`;
            the last is a text.
        """
        names = ("top", "n_heads", "expected_shared", "expected_jaccard")
        whole = {name: getattr(self, name) for name in names}
        rows = [
            {**pair.told(), **whole, "heads": " ".join(map(str, pair.heads))} for pair in self.pairs
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def to_dict(self) -> dict[str, Any]:
        """As plain values; a correlation that does not exist is `None`."""
        pairs = [
            {
                **pair.told(),
                "heads": [str(head) for head in pair.heads],
                "spearman": None if math.isnan(pair.spearman) else pair.spearman,
                "kendall": None if math.isnan(pair.kendall) else pair.kendall,
            }
            for pair in self.pairs
        ]
        return {
            "top": self.top,
            "n_heads": self.n_heads,
            "expected_shared": self.expected_shared,
            "expected_jaccard": self.expected_jaccard,
            "tops": {name: [str(head) for head in top] for name, top in self.tops.items()},
            "in_all": [str(head) for head in self.in_all],
            "pairs": pairs,
            "provenances": {name: was.to_dict() for name, was in self.provenances.items()},
        }

    def figure(self) -> go.Figure:
        """Draws the pairs: Jaccard as colour, shared heads and Spearman's correlation as text."""
        return figures.overlap_figure(self)


def overlap(scans: Mapping[str, HeadScores], top: int = 10) -> Overlap:
    """Compares which heads several scans put on top: data sets, ablations, or sibling models.

    The paper's Fig. 5 in numbers. A count of shared heads says little without its chance level:
    two random sets of `k` out of `N` heads share `k * k / N` on average, and `s` or more with the
    hypergeometric probability `sum_{j >= s} C(k, j) C(N - k, k - j) / C(N, k)`, which is exact
    here. Models that have nothing in common but that their highest heads lie in the same layers
    share more than that. So beside it stands what tops share that keep their layers and are drawn
    at random within them. Both are yardsticks and no tests of significance: heads of one model
    are not independent, and two scans of any kind tend to agree on a few.

    Args:
        scans: scores by name, two or more, of models with the same layers and heads. Heads that
            one of them did not score (NaN) are left out of all. Of screened scans correlations
            take screened scores where there is no exact one.
        top: how many heads are the top; ties at its end go by layer, then head.

    Returns:
        For each pair the shared heads, Jaccard index, chance level and rank correlations.

    Raises:
        SafeheadError: for fewer than two scans, scans of different shape (both are named), or a
            `top` that is not between 1 and the number of heads, or more than a screened scan knows.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> attention = sh.ships(model, prompts)
        >>> scaling = sh.ships(model, prompts, ablation="scaling")
        >>> found = sh.overlap({"UA": attention, "SC": scaling}, top=2)
        >>> [str(head) for head in found.in_all]
        ['L1H3', 'L2H6']
    """
    if not isinstance(scans, Mapping):
        raise SafeheadError("give scans by name, such as {'UA': attention, 'SC': scaling}")
    names = tuple(scans)
    if len(names) < 2:
        raise SafeheadError(f"{len(names)} scans: give two or more to compare, each with a name")
    for name, scan in scans.items():
        if not isinstance(scan, HeadScores):
            raise SafeheadError(
                f"{name!r} is a {type(scan).__name__}: give scores of all heads, as ships and "
                "generalized_ships return them"
            )
        if scan.screening is not None and top > scan.screening.settings["top"]:
            raise SafeheadError(
                f"top={top}: {name!r} was screened for its top {scan.screening.settings['top']} "
                f"only. Use that, or scan again with screen=Screening(top={top})"
            )
        here, there = tuple(scans[names[0]].values.shape), tuple(scan.values.shape)
        if here != there:
            raise SafeheadError(
                f"{names[0]!r} has {here[0]} layers of {here[1]} heads, and {name!r} {there[0]} of "
                f"{there[1]}: only scans of models with the same layers and heads can be compared"
            )
    templates = {
        name: [scan.provenance.prompts.get(key) for key in ("template", "system", "prefix")]
        for name, scan in scans.items()
    }
    if len(set(map(tuple, templates.values()))) > 1:
        told = ", ".join(
            f"{name!r} in {template!r}"
            + (f" with system prompt {system!r}" if system else "")
            + (f" begun with {prefix!r}" if prefix else "")
            for name, (template, system, prefix) in templates.items()
        )
        logger.warning(
            "the prompts stand in different templates, which may be all that differs: %s", told
        )
    values = torch.stack([scan.best_known.double() for scan in scans.values()])
    places = (~values.isnan().any(0)).nonzero().tolist()
    heads = [Head(layer, head) for layer, head in places]
    if not 1 <= top <= len(heads):
        raise SafeheadError(
            f"top={top}: the top may be 1 to {len(heads)} heads, because that many were scored by "
            f"all of {', '.join(names)}"
        )
    scored = {
        name: torch.stack([row[head] for head in heads])
        for name, row in zip(names, values, strict=True)
    }
    tops = {}
    for name, scan in scans.items():
        exact = [(head, scan[head]) for head in heads if not math.isnan(scan[head])]
        tops[name] = _top(name, exact, top)
    chances = hypergeometric(len(heads), top, top)
    sizes = Counter(head.layer for head in heads)
    pairs = []
    for first, second in itertools.combinations(names, 2):
        both = tuple(head for head in tops[first] if head in tops[second])
        by_layer = _within_layers(sizes, tops[first], tops[second])
        pairs.append(
            Pair(
                first=first,
                second=second,
                heads=both,
                jaccard=len(both) / (2 * top - len(both)),
                p_at_least=float(sum(chances[len(both) :])),
                expected_by_layer=float(sum(n * chance for n, chance in enumerate(by_layer))),
                p_by_layer=float(sum(by_layer[len(both) :])),
                spearman=spearman(scored[first], scored[second]),
                kendall=kendall(scored[first], scored[second]),
            )
        )
    return Overlap(
        names=names,
        top=top,
        n_heads=len(heads),
        tops=tops,
        pairs=tuple(pairs),
        expected_shared=top * top / len(heads),
        expected_jaccard=float(
            sum(
                chance * Fraction(shared, 2 * top - shared) for shared, chance in enumerate(chances)
            )
        ),
        provenances={name: scan.provenance for name, scan in scans.items()},
    )


def _top(name: str, scored: Iterable[tuple[Head, float]], top: int) -> tuple[Head, ...]:
    ranked = sorted(scored, key=lambda pair: (-pair[1], pair[0]))
    if top < len(ranked) and ranked[top - 1][1] == ranked[top][1]:
        logger.warning(
            "%s: %s and %s have the same score, and only the first is among the top %d: which "
            "heads are there is arbitrary",
            name, ranked[top - 1][0], ranked[top][0], top,
        )  # fmt: skip
    return tuple(head for head, _ in ranked[:top])


def hypergeometric(total: int, first: int, second: int) -> list[Fraction]:
    """The exact probabilities that random sets of two sizes out of `total` share 0, 1, ... ."""
    ways = math.comb(total, second)
    return [
        Fraction(math.comb(first, shared) * math.comb(total - first, second - shared), ways)
        for shared in range(min(first, second) + 1)
    ]


def _within_layers(
    sizes: Mapping[int, int], first: Sequence[Head], second: Sequence[Head]
) -> list[Fraction]:
    """The same for two tops, each of which is drawn anew within its layers."""
    chances = [Fraction(1)]
    for layer, size in sizes.items():
        here, there = (sum(head.layer == layer for head in top) for top in (first, second))
        more = hypergeometric(size, here, there)
        together = [Fraction(0)] * (len(chances) + len(more) - 1)
        for (a, chance), (b, other) in itertools.product(enumerate(chances), enumerate(more)):
            together[a + b] += chance * other
        chances = together
    return chances

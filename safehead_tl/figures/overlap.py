"""The figure of an overlap: a heatmap of pairs of scans."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.figures.named_grid import LETTER, named_grid
from safehead_tl.figures.style import lay_out, plain

if TYPE_CHECKING:  # which imports this file, when a figure is asked for
    from safehead_tl.evaluation import Overlap, Pair

CELL = 96


def overlap_figure(found: Overlap) -> go.Figure:
    """A heatmap of pairs: Jaccard is the colour, shared heads and Spearman the text."""
    names, k = found.names, found.top
    pairs = {(pair.first, pair.second): pair for pair in found.pairs}
    grid = [
        [pairs.get((row, column), pairs.get((column, row))) for column in names] for row in names
    ]
    shown = [plain(name) for name in names]
    figure = named_grid(
        [[None if pair is None else pair.jaccard for pair in row] for row in grid],
        [["" if pair is None else _cell(pair, k) for pair in row] for row in grid],
        [["" if pair is None else _hover(pair, k) for pair in row] for row in grid],
        shown,
        shown,
        "Jaccard index",
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    longest = max(map(len, names)) * LETTER
    below = min(longest, 160) if longest > CELL else 20
    return lay_out(
        figure,
        f"How many of their {k} highest heads the scans share",
        [
            f"by chance {found.expected_shared:.2g} (Jaccard {found.expected_jaccard:.2g})",
            f"ρ: Spearman's, over all {found.n_heads} heads",
        ],
        plot=(max(360, CELL * len(names)), max(180, 0.75 * CELL * len(names))),
        margin={"l": 30 + longest, "r": 100, "b": 30 + below},
    )


def _cell(pair: Pair, k: int) -> str:
    return f"<b>{pair.shared} of {k}</b><br>{_rho(pair)}"


def _rho(pair: Pair) -> str:
    return "ρ undefined" if math.isnan(pair.spearman) else f"ρ = {pair.spearman:.2f}"


def _hover(pair: Pair, k: int) -> str:
    lines = [", ".join(map(str, pair.heads[row : row + 6])) for row in range(0, pair.shared, 6)]
    return "<br>".join(
        [
            f"<b>{plain(pair.first)} and {plain(pair.second)}</b>",
            f"{pair.shared} of {k} shared, Jaccard {pair.jaccard:.3f}",
            f"as many or more by chance: p = {pair.p_at_least:.2g}",
            f"by chance within the layers: {pair.expected_by_layer:.2g}, p = {pair.p_by_layer:.2g}",
            f"Spearman's {_rho(pair)}, Kendall's τ<sub>b</sub> = {pair.kendall:.2f}",
            *(lines or ["no head in common"]),
        ]
    )

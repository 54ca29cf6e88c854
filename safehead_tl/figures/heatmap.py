"""The heatmap of a scan: layer by head, with a bar for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from safehead_tl.figures.captions import UNITS, score_words
from safehead_tl.figures.heatmap_parts import (
    GAP_FROM,
    cell_size,
    cells,
    count_axis,
    crosses,
    kv_axis,
    kv_separators,
    legend_notes,
    outline,
    shades_of,
)
from safehead_tl.figures.style import COLOURS, MARGIN, WIDEST, lay_out
from safehead_tl.heads import Head
from safehead_tl.results import Scale

if TYPE_CHECKING:
    from safehead_tl.results import HeadScores

HEIGHT = 900
BARS, BETWEEN = 100, 14
COLOURBAR = 112


def heatmap_figure(
    scores: HeadScores,
    marked: Sequence[Head],
    marked_as: str,
    outlined: int,
    statistic: Literal["mean", "max"] | None,
    scale: Scale | None = None,
) -> go.Figure:
    """A layer-by-head heatmap; hovering a cell names its head, score and rank.

    As `HeadScores.heatmap`; without a `statistic` layers have no bars.
    """
    layers, heads = scores.values.shape
    beside = BETWEEN + BARS if statistic else 0
    room = WIDEST - MARGIN["l"] - COLOURBAR - beside
    width, height = cell_size(heads, room), cell_size(layers, HEIGHT)
    cell = min(width, height)
    grid = max(280.0, heads * width)
    total = grid + beside
    colours = shades_of([scores], scale)
    figure = go.Figure(cells(scores, colours, gap=cell >= GAP_FROM))
    figure.update_traces(colorbar=colours.bar(UNITS[scores.measure]))
    pale = scores.screening is not None
    ranked = [head for head, _ in scores.ranked()]
    outline(figure, ranked[:outlined], cell, ("x", "y"))
    if marked:
        figure.add_trace(crosses(marked, cell, ("x", "y")))
    x = count_axis("head", heads, grid / heads) | {"domain": [0, grid / total]}
    y = count_axis("layer", layers, height) | {
        "range": None,
        "autorange": "reversed",
        "minallowed": -0.5,  # crosses near an edge would widen it
        "maxallowed": layers - 0.5,
    }
    figure.update_layout(xaxis=x, yaxis=y, plot_bgcolor=COLOURS["empty"])
    if statistic:
        _add_bars(figure, scores, statistic, (grid + BETWEEN) / total)
    grouped = scores.heads_per_kv_group > 1
    if grouped:
        figure.add_trace(kv_separators(scores, ("x3", "y")))
        above = kv_axis(scores, grid / heads) | {"overlaying": "x", "matches": "x"}
        figure.update_layout(xaxis3={**above, "domain": x["domain"], "range": x["range"]})
    title, notes = score_words(scores)
    return lay_out(
        figure,
        title,
        [*notes, *legend_notes(len(ranked), outlined, marked, marked_as, pale=pale)],
        plot=(total, max(180.0, layers * height)),
        margin={"r": COLOURBAR, "t": 48 if grouped else 6},
    )


def layer_statistic(
    values: Float[Tensor, "layer head"], statistic: Literal["mean", "max"]
) -> list[float | None]:
    """Mean or highest score in each layer, of the heads that were scored; `None` without any."""
    rows = [[value for value in row if value == value] for row in values.tolist()]  # noqa: PLR0124
    if statistic == "max":
        return [max(row, default=None) for row in rows]
    return [sum(row) / len(row) if row else None for row in rows]


def _add_bars(
    figure: go.Figure, scores: HeadScores, statistic: Literal["mean", "max"], start: float
) -> None:
    found = layer_statistic(scores.best_known, statistic)
    word = {"mean": "mean", "max": "highest"}[statistic]
    figure.add_bar(
        x=found,
        y=list(range(len(found))),
        xaxis="x2",
        orientation="h",
        marker={"color": COLOURS["score"], "line": {"width": 0}},
        hovertemplate=f"layer %{{y}}: {word} %{{x:.4g}}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(
        bargap=0.25,
        xaxis2={
            "domain": [start, 1],
            "anchor": "y",
            "title": {"text": f"{word} in layer", "standoff": 8},
            "nticks": 4,
            "rangemode": "tozero",
            "zeroline": False,
            "exponentformat": "e",
        },
    )

"""Shares between 0 and 1 in a grid of named rows and columns, with a text in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from safehead_tl.figures.style import COLOURS, NAMED_TICKS, SEQUENTIAL, colour_bar

LETTER = 7.5
"""Pixels of a letter of a row's name."""

DARK = 0.47
"""Up to which share the colour asks for white letters."""


def named_grid(
    shares: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    hovers: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    scale: str,
) -> go.Figure:
    """Colours for the shares, the first row at the top.

    Args:
        shares: the colours, by row and column; `None` leaves a cell empty.
        texts: what stands in each cell, as HTML.
        hovers: what a cell says when it is pointed at, as HTML.
        columns: their names, as HTML.
        rows: their names, as HTML.
        scale: what the colours are.
    """
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            text=hovers,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar=colour_bar(scale),
            xgap=1,
            ygap=1,
        )
    )
    cells = [
        (column, row, share)
        for row, line in enumerate(shares)
        for column, share in enumerate(line)
        if share is not None
    ]
    figure.add_scatter(
        x=[column for column, _, _ in cells],
        y=[row for _, row, _ in cells],
        text=[texts[row][column] for column, row, _ in cells],
        textfont={"color": ["black" if share > DARK else "white" for *_, share in cells]},
        mode="text",
        hoverinfo="skip",
        showlegend=False,
    )
    return figure.update_layout(
        plot_bgcolor=COLOURS["empty"],
        xaxis=_axis(columns, [-0.5, len(columns) - 0.5]),
        yaxis=_axis(rows, [len(rows) - 0.5, -0.5]),
    )


def _axis(names: Sequence[str], span: list[float]) -> dict[str, Any]:
    return {
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "range": span,
        **NAMED_TICKS,
    }

"""Numbers in a grid of named rows and columns, with a text in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from safehead_tl.figures.style import COLOURS, DIVERGING, NAMED_TICKS, SEQUENTIAL, colour_bar

LETTER = 7.5
"""Pixels of a letter of a row's name."""

DARK = 0.47
"""Up to which share the colour asks for white letters."""

PALE = 0.6
"""Up to which share of a scale with two ends it asks for black ones."""


def named_grid(
    shares: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    hovers: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    scale: str,
    *,
    top: float = 1.0,
    signed: bool = False,
) -> go.Figure:
    """Colours for the shares, the first row at the top.

    Args:
        shares: the colours, by row and column; `None` leaves a cell empty.
        texts: what stands in each cell, as HTML.
        hovers: what a cell says when it is pointed at, as HTML.
        columns: their names, as HTML.
        rows: their names, as HTML.
        scale: what the colours are.
        top: the upper end of the scale, for other numbers than shares.
        signed: the lower end is as far below zero, and not at it.
    """
    top = top or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            text=hovers,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            colorscale=DIVERGING if signed else SEQUENTIAL,
            zmin=-top if signed else 0,
            zmax=top,
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
        textfont={
            "color": [
                "black" if (abs(share) <= PALE * top if signed else share > DARK * top) else "white"
                for *_, share in cells
            ]
        },
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

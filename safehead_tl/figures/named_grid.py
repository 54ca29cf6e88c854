"""Numbers in a grid of named rows and columns, with a text in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from safehead_tl.figures.shades import Shades
from safehead_tl.figures.style import COLOURS, FONT, NAMED_TICKS, Pixels

LETTER = 7.5
"""Pixels of a letter of a row's name."""

DARK = 0.47
"""Up to which share the colour asks for white letters."""

PALE = 0.6
"""Up to which share of a scale with two ends it asks for black ones."""

SHARES = Shades("linear", (1.0,))
"""Half as much is half as bright, up to all."""


def named_grid(
    numbers: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    hovers: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    unit: str,
    shades: Shades = SHARES,
    *,
    size: Pixels = FONT,
) -> go.Figure:
    """Colours for numbers, the first row at the top; `None` leaves a cell empty.

    Names, `texts` (in cells) and `hovers` (when one is pointed at) are HTML.
    """
    colours = [[None if each is None else shades(each) for each in line] for line in numbers]
    figure = go.Figure(
        go.Heatmap(
            z=colours,
            text=hovers,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            colorbar=shades.bar(unit),
            xgap=1,
            ygap=1,
            **shades.trace(),
        )
    )
    cells = [
        (column, row, colour / shades.top)
        for row, line in enumerate(colours)
        for column, colour in enumerate(line)
        if colour is not None
    ]
    figure.add_scatter(
        x=[column for column, _, _ in cells],
        y=[row for _, row, _ in cells],
        text=[texts[row][column] for column, row, _ in cells],
        textfont={
            "size": size,
            "color": [
                "black" if (abs(share) <= PALE if shades.signed else share > DARK) else "white"
                for *_, share in cells
            ],
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

"""How all figures look: colours by what they stand for, sizes, titles, intervals.

The colours are Okabe and Ito's and the scale is Cividis: colour-blind people can tell them apart.
Only what plotly 5.24 knows is used. Pixels are those of a figure's own width and height.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import plotly.graph_objects as go

from safehead_tl.figures.drawn import UPLOADS, Figure

Pixels: TypeAlias = float | int

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "unablated": "#56b4e9",
        "ablated": "#d55e00",
        "controls": "#7a7a7a",
        "marked": "#cc79a7",
        "outlined": "#d55e00",
        "score": "#0072b2",
        "ink": "#333333",
        "quiet": "#b5b5b5",
        "empty": "#eeeeee",
    }
)
"""What each colour stands for, in every figure."""

NAMED_TICKS: Mapping[str, Any] = MappingProxyType(
    {"ticks": "outside", "tickcolor": "white", "showgrid": False, "zeroline": False}
)
"""For an axis of names: they keep a distance."""

SERIES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
"""For things of one kind that have only names."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
SEQUENTIAL = "Cividis"
DIVERGING = "PuOr"
"""For numbers with a sign, zero in the middle: purple above, orange below."""
TEMPLATE = "plotly_white"
FONT, TITLE, NOTE, SMALL = 13, 17, 12, 9
FAMILY = "Arial, Helvetica, sans-serif"
LETTER = 0.48
"""A letter's width on average, in font sizes."""
LINE = 18.2
"""Pixels from one line of the header to the next: 1.3 times its font size, 14."""

MARGIN: Mapping[str, int] = MappingProxyType({"l": 72, "r": 32, "t": 20, "b": 60})
"""Around the plot, without header and legend."""

WIDEST = 900
"""Pixels of a figure: what a notebook's cell has room for."""


def plain(text: str, most: int = 60) -> str:
    """A text that plotly shows as it is, and not as markup; its middle is left out if long."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} … {text[-(most // 3) :]}"
    return html.escape(text, quote=False)


def lay_out(
    figure: go.Figure,
    title: str,
    notes: Sequence[str],
    *,
    plot: tuple[Pixels, Pixels],
    margin: Mapping[str, Pixels] = MappingProxyType({}),
    legend: int = 0,
) -> Figure:
    """Gives a figure its header, fonts and size.

    Args:
        figure: the figure.
        title: what was done.
        notes: on what, and how to read it; joined by semicolons, and not broken where it can be
            helped.
        plot: width and height of the plot in pixels. The header is added to it, and the margins;
            the whole is no wider than `WIDEST`.
        margin: pixels around it that differ from `MARGIN`.
        legend: lines of the legend, which lies below the plot; 0 for none.
    """
    around = {**MARGIN, **margin}
    width = min(WIDEST, round(plot[0] + around["l"] + around["r"]))
    titles = wrapped(title, max(20, round((width - 40) / (LETTER * TITLE)))) or [""]
    lines = _filled(notes, max(30, round((width - 40) / (LETTER * NOTE))))
    header = 16 + LINE * (len(titles) + len(lines)) + 8
    below = 22 * legend + 8 if legend else 0
    text = "<br>".join(
        [_sized("<br>".join(titles), TITLE), *(_sized(line, NOTE) for line in lines)]
    )
    figure = Figure(figure)
    figure.update_layout(
        template=TEMPLATE,
        modebar={"remove": UPLOADS},
        meta={"header": header},
        font={"family": FAMILY, "size": FONT, "color": COLOURS["ink"]},
        title={
            "text": text,
            "font": {"size": 14, "color": COLOURS["ink"]},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 20, "t": 18},
        },
        width=width,
        height=round(plot[1] + header + around["t"] + around["b"] + below),
        margin={
            "l": around["l"],
            "r": around["r"],
            "t": header + around["t"],
            "b": around["b"] + below,
        },
        showlegend=legend > 0,
        legend={
            "orientation": "h",
            "x": 0,
            "y": 0.01,
            "yref": "container",
            "yanchor": "bottom",
            "font": {"size": NOTE},
        },
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(title={"font": {"size": FONT}})
    figure.update_yaxes(title={"font": {"size": FONT}})
    return figure


def colour_bar(title: str) -> dict[str, Any]:
    """The scale of a heatmap, at its right."""
    return {
        "title": {"text": title, "side": "right", "font": {"size": FONT}},
        "thickness": 16,
        "exponentformat": "e",
    }


def error_bars(
    middle: Sequence[float | int], intervals: Sequence[tuple[float | int, float | int]]
) -> dict[str, Any]:
    """95 % intervals, as a trace's `error_x` or `error_y`."""
    pairs = list(zip(middle, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in pairs],
        "arrayminus": [value - low for value, (low, _) in pairs],
        "thickness": 1.5,
        "width": 4,
        "color": COLOURS["ink"],
    }


def _sized(text: str, size: int) -> str:
    return f'<span style="font-size:{size}px">{text}</span>'


def _filled(notes: Sequence[str], width: int) -> list[str]:
    """Notes in lines; one that is longer than a line has lines of its own."""
    lines: list[str] = []
    for number, note in enumerate(notes):
        ended = note if number == len(notes) - 1 or note.endswith(".") else f"{note};"
        if lines and len(lines[-1]) + 1 + len(ended) <= width:
            lines[-1] += f" {ended}"
        else:
            lines += wrapped(ended, width)
    return lines


def wrapped(text: str, width: Pixels) -> list[str]:
    """A text in lines of as many letters, broken between words."""
    return textwrap.wrap(
        text, max(10, round(width)), break_long_words=False, break_on_hyphens=False
    )

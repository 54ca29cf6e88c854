"""What heatmaps of scores are made of: cells, outlines, crosses, KV groups, axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from safehead_tl.figures.captions import UNITS, head_words
from safehead_tl.figures.shades import Shades
from safehead_tl.figures.style import COLOURS, Pixels, plain
from safehead_tl.heads import Head
from safehead_tl.results import Rate, Scale

if TYPE_CHECKING:
    from safehead_tl.results import HeadScores

LARGEST, SMALLEST = 46, 4.5
"""Pixels of a cell."""
PALE = 0.4
"""Opacity of cells whose score is not exact."""
GAP_FROM = 20
"""Cells of fewer pixels lie next to each other without a gap."""


def cell_size(count: int, room: Pixels) -> Pixels:
    """Pixels of a cell, for as many in a row or column."""
    return max(SMALLEST, min(LARGEST, room / count))


def shades_of(scans: Sequence[HeadScores], scale: Scale | None) -> Shades:
    """The colours that scans of one measure share.

    By default square root, and linear for shares of responses: those do not span decades, and half
    as many are to look like half.
    """
    usual: Scale = "linear" if scans[0].unit == "rate" else "sqrt"
    scored = (score for scores in scans for _, score in scores.ranked())
    return Shades.of(scored, scale or usual, signed=scans[0].signed)


def cells(scores: HeadScores, shades: Shades, *, gap: bool) -> list[go.Heatmap]:
    """The cells; hovering one names its head, score, rank and KV group.

    NaN leaves a cell empty, or pale if the head was screened; `gap` leaves a pixel between cells.
    """
    exact = go.Heatmap(
        z=_shaded(scores.values, shades),
        text=hover(scores),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        xgap=int(gap),
        ygap=int(gap),
        **shades.trace(),
    )
    if scores.screening is None:
        return [exact]
    pale = go.Heatmap(exact)
    pale.update(
        z=_shaded(scores.best_known.where(scores.values.isnan(), math.nan), shades),
        opacity=PALE,
        showscale=False,
    )
    return [exact, pale]


def _shaded(values: Float[Tensor, "layer head"], shades: Shades) -> list[list[float]]:
    return [[shades(value) for value in row] for row in values.tolist()]


def hover(scores: HeadScores) -> list[list[str]]:
    """A text for each cell."""
    rank = {head: number for number, (head, _) in enumerate(scores.ranked(), 1)}
    size, unit = scores.heads_per_kv_group, UNITS[scores.measure]
    screened = dict(scores.screening.ranked()) if scores.screening else {}

    def text(head: Head, value: float) -> str:
        lines = [f"<b>{head}</b>"]
        if head in rank:
            lines += [f"{value:.4g} ({unit})", f"rank {rank[head]} of {len(rank)}"]
            lines += _interval(scores, head)
        elif head in screened:
            lines += [f"about {screened[head]:.4g} ({unit})", "screened only, not exact"]
        else:
            lines += ["not scored"]
        if size > 1:
            group = head.head // size
            lines += [f"KV group {group}: heads {group * size} to {group * size + size - 1}"]
        return "<br>".join(lines)

    return [
        [text(Head(layer, head), value) for head, value in enumerate(row)]
        for layer, row in enumerate(scores.values.tolist())
    ]


def _interval(scores: HeadScores, head: Head) -> list[str]:
    """The 95 % Wilson interval over prompts of scores that are rates."""
    if scores.unit != "rate" or scores.per_prompt is None:
        return []
    rate = Rate(scores.per_prompt[:, *head].double().sum().item(), len(scores.per_prompt))
    return [f"95 %: {rate.interval[0]:.2f} to {rate.interval[1]:.2f}"]


def outline(figure: go.Figure, heads: Sequence[Head], cell: Pixels, axes: tuple[str, str]) -> None:
    """Draws a frame around some heads' cells."""
    for head in heads:
        figure.add_shape(
            type="rect",
            xref=axes[0],
            yref=axes[1],
            x0=head.head - 0.5,
            x1=head.head + 0.5,
            y0=head.layer - 0.5,
            y1=head.layer + 0.5,
            line={"color": COLOURS["outlined"], "width": 3 if cell >= GAP_FROM else 2},
        )


def crosses(heads: Sequence[Head], cell: Pixels, axes: tuple[str, str]) -> go.Scatter:
    """A cross on each of some heads' cells."""
    return go.Scatter(
        x=[head.head for head in heads],
        y=[head.layer for head in heads],
        xaxis=axes[0],
        yaxis=axes[1],
        mode="markers",
        marker={
            "symbol": "x",
            "size": max(8, min(11, 0.6 * cell)),
            "color": COLOURS["marked"],
            "line": {"color": "white", "width": 1},
        },
        hoverinfo="skip",
        showlegend=False,
    )


def kv_separators(scores: HeadScores, axes: tuple[str, str]) -> go.Scatter:
    """White lines between heads that have different key/value heads."""
    layers, heads = scores.values.shape
    ends = [end - 0.5 for end in range(0, heads + 1, scores.heads_per_kv_group)][1:-1]
    return go.Scatter(
        x=[place for end in ends for place in (end, end, None)] or [None],
        y=[place for _ in ends for place in (-0.5, layers - 0.5, None)] or [None],
        xaxis=axes[0],
        yaxis=axes[1],
        mode="lines",
        line={"color": "white", "width": 2.5},
        hoverinfo="skip",
        showlegend=False,
    )


def kv_axis(scores: HeadScores, cell: Pixels) -> dict[str, Any]:
    """The numbers of the KV groups, above the cells."""
    size = scores.heads_per_kv_group
    count = scores.values.shape[1] // size
    step = _step(count, size * cell, 18)
    return {
        "side": "top",
        "title": {"text": f"KV group (of {size} query heads)", "standoff": 4},
        "tickvals": [group * size + (size - 1) / 2 for group in range(0, count, step)],
        "ticktext": [str(group) for group in range(0, count, step)],
        "ticks": "",
        "showgrid": False,
        "zeroline": False,
    }


def count_axis(title: str, count: int, cell: Pixels) -> dict[str, Any]:
    """An axis of layers or of heads."""
    return {
        "title": {"text": title, "standoff": 8},
        "dtick": _step(count, cell, 21),
        "tick0": 0,
        "range": [-0.5, count - 0.5],
        "showgrid": False,
        "zeroline": False,
    }


def legend_notes(
    scored: int,
    outlined: int,
    marked: Sequence[Head],
    marked_as: str,
    *,
    each: str = "",
    pale: bool = False,
) -> list[str]:
    """What outlines, crosses and pale cells mean."""
    shown = min(outlined, scored)
    notes = [f"outlined: the {shown} highest{each}"] if shown else []
    notes += ["pale: to first order only"] if pale else []
    return notes + ([f"cross: {plain(marked_as)} ({head_words(marked)})"] if marked else [])


def _step(count: int, cell: Pixels, room: Pixels) -> int:
    """Every how many cells a number is written, so that each has `room` pixels."""
    return next(step for step in (1, 2, 4, 8, 16, 32) if step * cell >= room or step >= count)

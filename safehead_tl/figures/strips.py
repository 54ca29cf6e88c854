"""Each prompt's score of the highest heads, as a dot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.errors import SafeheadError
from safehead_tl.figures.bars import head_rows, named_rows, top_scored
from safehead_tl.figures.captions import UNITS, score_words
from safehead_tl.figures.style import COLOURS, lay_out
from safehead_tl.heads import Head
from safehead_tl.results import FLOOR

if TYPE_CHECKING:
    from safehead_tl.results import HeadScores

GOLDEN = 0.6180339887498949
SPREAD = 0.6
WIDTH, ROW = 560, 40


def strips_figure(
    scores: HeadScores, top: int, log: bool, marked: Sequence[Head], marked_as: str
) -> go.Figure:
    """A row of dots for each head, the highest mean at the top."""
    if scores.per_prompt is None:
        raise SafeheadError(
            f"{scores.measure} is one score for all prompts: it has none for each to draw"
        )
    if log and scores.signed:
        raise SafeheadError(f"{scores.measure} has a sign, which a logarithm has not: log=False")
    ranked = top_scored(scores, top)
    heads = [head for head, _ in ranked]
    values = {head: scores.per_prompt[:, head.layer, head.head].tolist() for head in heads}
    least = FLOOR if log else -float("inf")
    below = sum(value < least for row in values.values() for value in row)
    aside = jitter(len(scores.per_prompt))
    figure = go.Figure()
    for name, colour, rows in named_rows(heads, marked, marked_as):
        figure.add_scatter(
            name=f"a prompt ({name})" if marked else "a prompt",
            x=[max(value, least) for row in rows for value in values[heads[row]]],
            y=[row + shift for row in rows for shift in aside],
            mode="markers",
            marker={"color": colour, "size": 6, "opacity": 0.65},
            hovertext=[
                f"<b>{heads[row]}</b><br>prompt {number}: {value:.4g} {scores.unit}"
                for row in rows
                for number, value in enumerate(values[heads[row]])
            ],
            hoverinfo="text",
        )
    figure.add_scatter(
        name="mean",
        x=[max(value, least) for _, value in ranked],
        y=list(range(len(ranked))),
        mode="markers",
        marker={
            "symbol": "line-ns",
            "size": 0.75 * ROW,
            "line": {"color": COLOURS["ink"], "width": 2.5},
        },
        hovertext=[f"<b>{head}</b><br>mean {value:.4g} {scores.unit}" for head, value in ranked],
        hoverinfo="text",
    )
    axis = {"type": "log", "dtick": 1, "tickfont": {"size": 11}} if log else {"rangemode": "tozero"}
    figure.update_layout(
        xaxis={
            "title": {"text": f"each prompt's {UNITS[scores.measure].removeprefix('mean ')}"},
            "exponentformat": "power",
            **axis,
        },
        yaxis=head_rows(heads),
    )
    title, notes = score_words(scores)
    notes.append(f"the {len(ranked)} highest of {len(scores.ranked())} heads")
    notes.append("dots are spread up and down only to be seen")
    if below:
        notes.append(f"{below} of {sum(map(len, values.values()))} scores are below 1e-9")
    return lay_out(
        figure,
        f"{title}, prompt by prompt",
        notes,
        plot=(WIDTH, max(60, ROW * len(ranked))),
        legend=1,
    )


def jitter(count: int) -> list[float]:
    """How far each of `count` dots is moved aside: evenly spread, and the same each time."""
    return [SPREAD * ((number * GOLDEN + 0.5) % 1 - 0.5) for number in range(count)]

"""The figure of the ground-truth benchmark: contestants by kinds of subject."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.figures.named_grid import LETTER, named_grid
from safehead_tl.figures.style import FONT, NOTE, SMALL, WIDEST, lay_out, wrapped

if TYPE_CHECKING:  # which imports this file, when a figure is asked for
    from safehead_tl.ground_truth import GroundTruth, Summary

CELL, ROW, RIGHT = 74, 26, 90


def ground_truth_figure(found: GroundTruth) -> go.Figure:
    """A heatmap of the contestants, the best at the top; their mean over all at the right."""
    overall = found.summaries()
    rows = [one.contestant for one in overall]
    columns: list[dict[str, Summary]] = [
        *({one.contestant: one for one in found.summaries(kind)} for kind in found.kinds),
        {one.contestant: one for one in overall},
    ]
    grid = [[column[row] for column in columns] for row in rows]
    values = [[one.mean("average precision") for one in line] for line in grid]
    counts = {**{kind: found.count(kind) for kind in found.kinds}, "all": found.count()}
    left = 24 + max(map(len, rows)) * LETTER
    crowded = CELL * len(counts) > WIDEST - left - RIGHT  # then names stand upright
    names = [
        f"{name} ({count})" if crowded else f"{'<br>'.join(wrapped(name, 10))}<br>({count})"
        for name, count in counts.items()
    ]
    figure = named_grid(
        [[math.nan if value is None else value for value in line] for line in values],
        [["" if value is None else f"{value:.2f}" for value in line] for line in values],
        [[_hover(one) for one in line] for line in grid],
        names,
        rows,
        "mean average precision",
        size=SMALL if crowded else FONT,
    )
    figure.update_xaxes(side="top", tickangle=-90 if crowded else 0)
    if crowded:
        left *= NOTE / FONT
        figure.update_layout({axis: {"tickfont": {"size": NOTE}} for axis in ("xaxis", "yaxis")})
    return lay_out(
        figure,
        "How well each contestant finds the heads that carry the refusal",
        [
            "mean average precision: 1 where they come first",
            "kinds of subject, and in brackets how many",
        ],
        plot=(max(420, CELL * len(names)), max(120, ROW * len(rows))),
        margin={
            "l": left,
            "r": RIGHT,
            "t": max(map(len, names)) * LETTER if crowded else 80,
            "b": 24,
        },
    )


def _hover(one: Summary) -> str:
    lines = [f"<b>{one.contestant}</b>"]
    metrics = dict.fromkeys(name for outcome in one.outcomes for name in outcome.metrics)
    lines += [f"{name} {one.told(name)}" for name in metrics]
    return "<br>".join(
        [*lines, *(f"refused: {each.refused}" for each in one.outcomes if each.refused)]
    )

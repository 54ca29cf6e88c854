"""The figure of the ground-truth benchmark: variants by kinds of organism."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.figures.named_grid import LETTER, named_grid
from safehead_tl.figures.style import lay_out, wrapped

if TYPE_CHECKING:  # which imports this file, when a figure is asked for
    from safehead_tl.ground_truth import GroundTruth, Summary

CELL, ROW = 74, 26


def ground_truth_figure(found: GroundTruth) -> go.Figure:
    """A heatmap of the main variants, the best at the top; their mean over all at the right.

    Args:
        found: the benchmark's result.
    """
    overall = [one for one in found.summaries() if one.variant.main]
    rows = [str(one.variant) for one in overall]
    columns: list[dict[str, Summary]] = [
        *({str(one.variant): one for one in found.summaries(kind)} for kind in found.kinds),
        {str(one.variant): one for one in overall},
    ]
    grid = [[column[row] for column in columns] for row in rows]
    values = [[one.means["average_precision"] for one in line] for line in grid]
    names = [
        f"{'<br>'.join(wrapped(name, 10))}<br>({found.organisms(kind)})"
        for name, kind in (*((kind, kind) for kind in found.kinds), ("all", None))
    ]
    figure = named_grid(
        values,
        [[f"{value:.2f}" for value in line] for line in values],
        [[_hover(one) for one in line] for line in grid],
        names,
        rows,
        "mean average precision",
    )
    figure.update_xaxes(side="top")
    return lay_out(
        figure,
        "How well each variant finds the planted heads",
        [
            "mean average precision: 1 where they come first",
            "kinds of organism, and in brackets how many",
        ],
        plot=(max(420, CELL * len(names)), max(120, ROW * len(rows))),
        margin={"l": 24 + max(map(len, rows)) * LETTER, "r": 110, "t": 80, "b": 24},
    )


def _hover(one: Summary) -> str:
    lines = [f"<b>{one.variant}</b>", f"average precision {one.told('average_precision')}"]
    lines += [f"precision@k {one.told('precision')}", f"recall@2k {one.told('recall')}"]
    return "<br>".join(lines)

"""The figure of the ground-truth benchmark: variants by kinds of organism."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl._style import COLOURS, NAMED_TICKS, SEQUENTIAL, colour_bar, lay_out, wrapped

if TYPE_CHECKING:  # which imports this file, when a figure is asked for
    from safehead_tl._ground_truth import GroundTruth
    from safehead_tl._ground_truth_summary import Summary

CELL, ROW = 74, 26
LETTER = 7.5
DARK = 0.47
"""Up to which average precision the colour asks for white letters."""


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
    cells = [(x, y, value) for y, line in enumerate(values) for x, value in enumerate(line)]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            text=[[_hover(one) for one in line] for line in grid],
            hovertemplate="%{text}<extra></extra>",
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar=colour_bar("mean average precision"),
            xgap=1,
            ygap=1,
        )
    )
    figure.add_scatter(
        x=[x for x, _, _ in cells],
        y=[y for _, y, _ in cells],
        text=[f"{value:.2f}" for _, _, value in cells],
        textfont={"color": ["black" if value > DARK else "white" for *_, value in cells]},
        mode="text",
        hoverinfo="skip",
        showlegend=False,
    )
    names = [
        f"{'<br>'.join(wrapped(name, 10))}<br>({found.organisms(kind)})"
        for name, kind in (*((kind, kind) for kind in found.kinds), ("all", None))
    ]
    figure.update_layout(
        plot_bgcolor=COLOURS["empty"],
        xaxis=_axis(names) | {"side": "top"},
        yaxis=_axis(rows) | {"range": [len(rows) - 0.5, -0.5]},
    )
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


def _axis(names: list[str]) -> dict[str, object]:
    return {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [-0.5, len(names) - 0.5],
        **NAMED_TICKS,
    }


def _hover(one: Summary) -> str:
    lines = [f"<b>{one.variant}</b>", f"average precision {one.told('average_precision')}"]
    lines += [f"precision@k {one.told('precision')}", f"recall@2k {one.told('recall')}"]
    return "<br>".join(lines)

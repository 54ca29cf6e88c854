"""How the highest heads change places from one scan to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.errors import SafeheadError
from safehead_tl.figures.bars import top_scored
from safehead_tl.figures.captions import model_words, prompt_words, score_words
from safehead_tl.figures.style import COLOURS, lay_out, plain
from safehead_tl.heads import Head

if TYPE_CHECKING:
    from safehead_tl.results import HeadScores

WIDTH, ROW = 430, 24


def slope_figure(
    before: HeadScores, after: HeadScores, top: int, names: tuple[str, str]
) -> go.Figure:
    """Two columns of heads by rank, and a line for each head."""
    for what, one, other in (
        ("measure", before.measure, after.measure),
        ("number of layers and heads", before.values.shape, after.values.shape),
    ):
        if one != other:
            raise SafeheadError(
                f"the two scans differ in their {what}, {one} and {other}: give two in which it "
                "is the same"
            )
    scans = before, after
    heads = list(dict.fromkeys(head for scan in scans for head, _ in top_scored(scan, top)))
    columns = [_column(scan, heads) for scan in scans]
    figure = go.Figure()
    for head in heads:
        (left, first), (right, second) = (column[head] for column in columns)
        colour = COLOURS["quiet" if left == right else "score" if left < right else "ablated"]
        figure.add_scatter(
            x=[0, 1],
            y=[left, right],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 8},
            hovertext=[f"{head}: {first}", f"{head}: {second}"],
            hoverinfo="text",
        )
        for x, y, said, side in ((0, left, first, "right"), (1, right, second, "left")):
            shift = -10 if x == 0 else 10
            figure.add_annotation(
                x=x, y=y, text=f"{head}  {said}", xanchor=side, xshift=shift, showarrow=False
            )
    for x, name in enumerate(names):
        figure.add_annotation(x=x, y=-1, text=f"<b>{plain(name)}</b>", showarrow=False)
    axis = {"showgrid": False, "zeroline": False, "showticklabels": False}
    figure.update_layout(
        xaxis={**axis, "range": [-0.75, 1.75], "fixedrange": True},
        yaxis={**axis, "range": [len(heads) - 0.5, -1.5], "fixedrange": True},
    )
    title, _ = score_words(before)
    notes = [
        f"{plain(name)}: {model_words(scan.provenance)}, {prompt_words(scan.provenance)}"
        for name, scan in zip(names, scans, strict=True)
    ]
    notes.append(f"the {top} highest of each, with rank and score; orange rose, blue fell")
    return lay_out(figure, title, notes, plot=(WIDTH, ROW * (len(heads) + 2)), margin={"l": 20})


def _column(scan: HeadScores, heads: list[Head]) -> dict[Head, tuple[int, str]]:
    """Each head's row, and its rank and score; those without a score come last."""
    ranked = {head: (rank, score) for rank, (head, score) in enumerate(scan.ranked(), 1)}
    order = sorted(heads, key=lambda head: ranked.get(head, (len(ranked) + 1, 0.0))[0])
    found = {}
    for row, head in enumerate(order):
        known = ranked.get(head)
        found[head] = row, "no score" if known is None else f"{known[0]}.  {known[1]:.2g}"
    return found

"""Heatmaps of several scans side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import plotly.graph_objects as go

from safehead_tl.errors import SafeheadError
from safehead_tl.figures.captions import MEASURES, UNITS, score_words
from safehead_tl.figures.heatmap_parts import (
    GAP_FROM,
    cell_size,
    cells,
    count_axis,
    crosses,
    kv_axis,
    kv_separators,
    legend_notes,
    outline,
    shades_of,
)
from safehead_tl.figures.shades import Shades
from safehead_tl.figures.style import (
    COLOURS,
    FONT,
    MARGIN,
    NOTE,
    WIDEST,
    Pixels,
    lay_out,
    plain,
    wrapped,
)
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.results import HeadScores, Scale

ROOM = (420, 560)
RIGHT = 40
ROW = WIDEST - MARGIN["l"] - RIGHT
"""Pixels that panels side by side may take, which up to three share; more go below."""
NARROWEST = 220
BETWEEN = 56
BELOW = 118
"""A panel's axis and scale, below it."""


def heatmaps(
    scans: Mapping[str, HeadScores],
    *,
    shared_scale: bool = False,
    marked: HeadsLike = (),
    marked_as: str = "marked",
    top: int = 3,
    scale: Scale | None = None,
) -> go.Figure:
    """Draws several scans of models of the same shape, side by side.

    What all scans have in common is said in the title, and what they differ in above each.

    Args:
        scans: one scan or more, each by a name: such as `{"UA": scores, "SC": others}`.
        shared_scale: give all the same colours for the same scores, instead of each its own.
        marked: heads to mark with a cross in all.
        marked_as: what these heads are, for the legend.
        top: how many of the highest scores to outline in each.
        scale: how scores become colours, as in `HeadScores.heatmap`.

    Raises:
        SafeheadError: if there is no scan, two have different shapes, a marked head does not
            exist, there is no such scale, or one would be shared by scores of different units.
    """
    _check(scans, shared_scale)
    names, shown = list(scans), list(scans.values())
    layers, heads = shown[0].values.shape
    chosen = parse_heads(marked, layers, heads)
    share = (ROW + BETWEEN) / min(len(shown), 3) - BETWEEN
    sizes = cell_size(heads, min(ROOM[0], share)), cell_size(layers, ROOM[1])
    width, height = max(NARROWEST, heads * sizes[0]), layers * sizes[1]
    title, shared, own = _words(shown)
    captions = [
        [f"<b>{plain(name)}</b>", *(line for part in parts for line in wrapped(part, width / 6.2))]
        for name, parts in zip(names, own, strict=True)
    ]
    grouped = any(scores.heads_per_kv_group > 1 for scores in shown)
    above = 18 * max(map(len, captions)) + 10 + (44 if grouped else 0)
    columns = max(1, min(len(shown), int((ROW + BETWEEN) / (width + BETWEEN))))
    rows = -(-len(shown) // columns)
    columns = -(-len(shown) // rows)
    whole = (
        columns * (width + BETWEEN) - BETWEEN,
        rows * (height + above + BELOW) - above - BELOW,
    )
    figure = go.Figure()
    for number, scores in enumerate(shown):
        row, column = divmod(number, columns)
        left, up = column * (width + BETWEEN), row * (height + above + BELOW)
        box = (
            (left / whole[0], (left + width) / whole[0]),
            (
                max(0.0, 1 - (up + height) / whole[1]),
                1 - up / whole[1],
            ),
        )
        colours = shades_of(shown if shared_scale else [scores], scale)
        panel = _Panel(figure, number, box, min(width / heads, sizes[1]), width / heads)
        panel.add(scores, colours, chosen, top)
        panel.scale(colours, UNITS[scores.measure], whole)
        panel.caption(captions[number], above)
    figure.update_layout(plot_bgcolor=COLOURS["empty"])
    most = max(len(scores.ranked()) for scores in shown)
    notes = [*shared, "one scale for all" if shared_scale else "each with its own scale"]
    pale = any(scores.screening is not None for scores in shown)
    notes += legend_notes(most, top, chosen, marked_as, each=" of each", pale=pale)
    margin = {"t": above + 4, "b": BELOW, "r": RIGHT}
    return lay_out(figure, title, notes, plot=whole, margin=margin)


Span: TypeAlias = tuple[float | int, float | int]
"""From where to where, as a share of the plot."""


class _Panel:
    """One heatmap of several: the axes `x1, y1, x101` of the first, `x2, y2, x102` of the next."""

    def __init__(
        self,
        figure: go.Figure,
        number: int,
        box: tuple[Span, Span],
        cell: Pixels,
        width: Pixels,
    ):
        self.figure, self.box, self.cell, self.width = figure, box, cell, width
        self.name = "" if number == 0 else str(number + 1)
        self.above = str(number + 101)

    def add(self, scores: HeadScores, colours: Shades, marked: Sequence[Head], top: int) -> None:
        """Cells, outlines, crosses, KV groups and axes."""
        layers, heads = scores.values.shape
        axes = f"x{self.name}", f"y{self.name}"
        for trace in cells(scores, colours, gap=self.cell >= GAP_FROM):
            self.figure.add_trace(trace.update(xaxis=axes[0], yaxis=axes[1]))
        outline(self.figure, [head for head, _ in scores.top(top)], self.cell, axes)
        if marked:
            self.figure.add_trace(crosses(marked, self.cell, axes))
        x = count_axis("head", heads, self.width) | {"domain": self.box[0], "anchor": axes[1]}
        y = count_axis("layer", layers, self.cell) | {
            "domain": self.box[1],
            "anchor": axes[0],
            "range": [layers - 0.5, -0.5],
        }
        layout: dict[str, Any] = {f"xaxis{self.name}": x, f"yaxis{self.name}": y}
        if scores.heads_per_kv_group > 1:
            self.figure.add_trace(kv_separators(scores, (f"x{self.above}", axes[1])))
            layout[f"xaxis{self.above}"] = kv_axis(scores, self.width) | {
                "overlaying": axes[0],
                "matches": axes[0],
                "anchor": axes[1],
                "range": x["range"],
            }
        self.figure.update_layout(layout)

    def scale(self, colours: Shades, unit: str, whole: tuple[Pixels, Pixels]) -> None:
        """The colours' scale, below."""
        (left, right), (bottom, _) = self.box
        bar = {
            "orientation": "h",
            "x": (left + right) / 2,
            "y": bottom - 46 / whole[1],
            "yanchor": "top",
            "len": 0.9 * (right - left),
            "thickness": 10,
            "nticks": 5,
            "exponentformat": "e",
            "ypad": 0,
            **colours.ticks(),
        }
        self.figure.update_traces({"colorbar": bar}, {"xaxis": f"x{self.name}", "type": "heatmap"})
        self.figure.add_annotation(  # a title of the bar's own would move between its numbers
            text=colours.words(unit),
            x=(left + right) / 2,
            y=bottom,
            xref="paper",
            yref="paper",
            xanchor="center",
            yanchor="top",
            yshift=-76,
            showarrow=False,
            font={"size": NOTE},
        )

    def caption(self, lines: Sequence[str], above: Pixels) -> None:
        """The scan's name and what is particular to it."""
        self.figure.add_annotation(
            text="<br>".join(lines),
            x=self.box[0][0],
            y=self.box[1][1],
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="top",
            yshift=above,
            align="left",
            showarrow=False,
            font={"size": FONT},
        )


def _check(scans: Mapping[str, HeadScores], shared_scale: bool) -> None:
    if not scans:
        raise SafeheadError("no scans: give such as {'UA': scores, 'SC': others}")
    (first, one), *others = scans.items()
    for name, other in others:
        if one.values.shape != other.values.shape:
            raise SafeheadError(
                f"{first!r} has {one.values.shape[0]} layers of {one.values.shape[1]} heads, and "
                f"{name!r} {other.values.shape[0]} of {other.values.shape[1]}: only scans of "
                "models of the same shape go side by side"
            )
        if shared_scale and one.measure != other.measure:
            raise SafeheadError(
                f"{first!r} is in {one.unit}, and {name!r} in {other.unit}: they cannot share a "
                "scale"
            )


def _words(scans: Sequence[HeadScores]) -> tuple[str, list[str], list[list[str]]]:
    """A title, what all have in common, and what each says for itself."""
    said = [score_words(scores) for scores in scans]
    titles = list(dict.fromkeys(title for title, _ in said))
    shared = [note for note in said[0][1] if all(note in notes for _, notes in said)]
    own = [
        [*([title] if len(titles) > 1 else []), *(note for note in notes if note not in shared)]
        for title, notes in said
    ]
    measures = {MEASURES[scores.measure] for scores in scans}
    several = f"{measures.pop() if len(measures) == 1 else 'Scores'}, side by side"
    return titles[0] if len(titles) == 1 else several, shared, own

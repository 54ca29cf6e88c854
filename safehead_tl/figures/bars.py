"""The highest scores as ranked bars, with 95 % intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.figures.captions import UNITS, score_words
from safehead_tl.figures.style import COLOURS, NAMED_TICKS, error_bars, lay_out, plain
from safehead_tl.heads import Head

if TYPE_CHECKING:
    from safehead_tl.results import HeadScores

DRAWS = 2000
WIDTH, ROW = 520, 22


def bars_figure(scores: HeadScores, top: int, marked: Sequence[Head], marked_as: str) -> go.Figure:
    """Horizontal bars, the highest at the top.

    Args:
        scores: what to draw.
        top: how many heads.
        marked: heads to show in another colour.
        marked_as: what they are.
    """
    ranked = top_scored(scores, top)
    heads = [head for head, _ in ranked]
    intervals = None
    if scores.per_prompt is not None:
        columns = scores.per_prompt[:, [h.layer for h in heads], [h.head for h in heads]]
        intervals = mean_intervals(columns)
    unit, figure = UNITS[scores.measure], go.Figure()
    for name, colour, rows in named_rows(heads, marked, marked_as):
        values = [ranked[row][1] for row in rows]
        shown = None if intervals is None else [intervals[row] for row in rows]
        figure.add_bar(
            name=name,
            x=values,
            y=rows,
            orientation="h",
            marker={"color": colour},
            error_x=None if shown is None else error_bars(values, shown),
            hovertext=[
                hover(scores, ranked, row, None if intervals is None else intervals[row])
                for row in rows
            ],
            hoverinfo="text",
        )
    figure.update_layout(
        barmode="overlay",
        bargap=0.25,
        xaxis={"title": {"text": unit}, "rangemode": "tozero", "exponentformat": "e"},
        yaxis=head_rows(heads),
    )
    title, notes = score_words(scores)
    notes.append(f"the {len(ranked)} highest of {len(scores.ranked())} heads")
    notes.append(
        f"95 % bootstrap intervals of the mean over {len(scores.per_prompt)} prompts"
        if scores.per_prompt is not None
        else "one score for all prompts together, so no interval"
    )
    return lay_out(
        figure,
        title,
        notes,
        plot=(WIDTH, max(60, ROW * len(ranked))),
        legend=1 if marked else 0,
    )


def top_scored(scores: HeadScores, top: int) -> list[tuple[Head, float]]:
    """The heads to draw, the highest first.

    Raises:
        SafeheadError: if there is none.
    """
    if top < 1 or not (ranked := scores.top(top)):
        raise SafeheadError(f"top={top}: ask for 1 head or more, of those that were scored")
    return ranked


def named_rows(
    heads: Sequence[Head], marked: Sequence[Head], marked_as: str
) -> list[tuple[str, str, list[int]]]:
    """Name, colour and rows of the marked heads and of the others."""
    own = [row for row, head in enumerate(heads) if head in marked]
    rest = [row for row, head in enumerate(heads) if head not in marked]
    kinds = [
        (plain(marked_as), COLOURS["marked"], own),
        ("other heads" if marked else "heads", COLOURS["score"], rest),
    ]
    return [kind for kind in kinds if kind[2]]


def head_rows(heads: Sequence[Head]) -> dict[str, object]:
    """A vertical axis with a row for each head, the first at the top."""
    return {
        "tickvals": list(range(len(heads))),
        "ticktext": [str(head) for head in heads],
        "range": [len(heads) - 0.5, -0.5],
        **NAMED_TICKS,
    }


def mean_intervals(samples: Float[Tensor, "prompt head"]) -> list[tuple[float, float]]:
    """95 % percentile bootstrap intervals of means over prompts.

    The same 2000 draws of prompts, by seed 0, serve all heads. The interval is a head's own: that
    it was chosen as one of the highest is not accounted for.
    """
    values = samples.double().cpu().numpy()
    count = len(values)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    low, high = np.quantile(drawn @ values / count, [0.025, 0.975], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def hover(
    scores: HeadScores,
    ranked: Sequence[tuple[Head, float]],
    row: int,
    interval: tuple[float, float] | None = None,
) -> str:
    """What a head's row says when it is pointed at."""
    head, value = ranked[row]
    between = "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
    lines = [f"<b>{head}</b>", f"{value:.4g}{between} ({UNITS[scores.measure]})"]
    lines.append(f"rank {row + 1} of {len(scores.ranked())}")
    if scores.heads_per_kv_group > 1:
        lines.append(f"KV group {head.head // scores.heads_per_kv_group}")
    return "<br>".join(lines)

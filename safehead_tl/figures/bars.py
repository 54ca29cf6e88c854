"""The highest scores as ranked bars, with medians over prompts and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.errors import SafeheadError
from safehead_tl.figures.captions import UNITS, score_words
from safehead_tl.figures.style import COLOURS, NAMED_TICKS, error_bars, lay_out, plain
from safehead_tl.heads import Head
from safehead_tl.results import median_intervals

if TYPE_CHECKING:
    from safehead_tl.results import HeadScores, Significance

WIDTH, ROW = 520, 22


def bars_figure(
    scores: HeadScores,
    top: int,
    marked: Sequence[Head],
    marked_as: str,
    significance: Significance | None = None,
) -> go.Figure:
    """Horizontal bars, the highest at the top; a star at each significant head."""
    ranked = top_scored(scores, top)
    heads = [head for head, _ in ranked]
    starred = () if significance is None else significance.heads
    unit, figure = UNITS[scores.measure], go.Figure()
    for name, colour, rows in named_rows(heads, marked, marked_as):
        values = [ranked[row][1] for row in rows]
        figure.add_bar(
            name=name,
            x=values,
            y=rows,
            orientation="h",
            marker={"color": colour},
            hovertext=[hover(scores, ranked, row) for row in rows],
            hoverinfo="text",
        )
    over_prompts = _add_prompts(figure, scores, heads)
    figure.update_layout(
        barmode="overlay",
        bargap=0.25,
        xaxis={"title": {"text": unit}, "rangemode": "tozero", "exponentformat": "e"},
        yaxis=head_rows(heads, starred),
    )
    title, notes = score_words(scores)
    notes.append(f"the {len(ranked)} highest of {len(scores.ranked())} heads")
    notes.append(over_prompts)
    if significance is not None:
        others = significance.against.provenance.prompts["prompt_count"]
        notes.append(
            f"star: higher than in {others} other prompts, p ≤ {significance.alpha:g} for all "
            f"heads at once ({len(starred)} heads)"
        )
    return lay_out(
        figure,
        title,
        notes,
        plot=(WIDTH, max(60, ROW * len(ranked))),
        legend=1 if marked or scores.per_prompt is not None else 0,
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


def head_rows(heads: Sequence[Head], starred: Sequence[Head] = ()) -> dict[str, object]:
    """A vertical axis with a row for each head, the first at the top, some with a star."""
    return {
        "tickvals": list(range(len(heads))),
        "ticktext": [f"{head} ★" if head in starred else str(head) for head in heads],
        "range": [len(heads) - 0.5, -0.5],
        **NAMED_TICKS,
    }


def _add_prompts(figure: go.Figure, scores: HeadScores, heads: Sequence[Head]) -> str:
    """Draws medians with intervals, or each prompt where these are few; says which."""
    if scores.per_prompt is None:
        return "one score for all prompts together, so no interval"
    samples = scores.per_prompt[:, [h.layer for h in heads], [h.head for h in heads]].double()
    rows, count = list(range(len(heads))), len(samples)
    marker = {"color": COLOURS["ink"], "symbol": "diamond", "size": 6}
    intervals = median_intervals(samples)
    if intervals is None:
        figure.add_scatter(
            name="a prompt", x=samples.flatten().tolist(), y=rows * count, mode="markers",
            marker=marker,
        )  # fmt: skip
        return f"bars: means; dots: the {count} prompts, too few for an interval"
    medians = samples.quantile(0.5, dim=0).tolist()
    figure.add_scatter(
        name="median over prompts",
        x=medians,
        y=rows,
        mode="markers",
        marker=marker,
        error_x=error_bars(medians, intervals),
        hovertext=[
            f"<b>{head}</b><br>median {median:.4g} [{low:.4g}, {high:.4g}]"
            for head, median, (low, high) in zip(heads, medians, intervals, strict=True)
        ],
        hoverinfo="text",
    )
    return f"bars: means over {count} prompts; diamonds: medians, with 95 % intervals"


def hover(scores: HeadScores, ranked: Sequence[tuple[Head, float]], row: int) -> str:
    """What a head's row says when it is pointed at."""
    head, value = ranked[row]
    lines = [f"<b>{head}</b>", f"{value:.4g} ({UNITS[scores.measure]})"]
    lines.append(f"rank {row + 1} of {len(scores.ranked())}")
    if scores.heads_per_kv_group > 1:
        lines.append(f"KV group {head.head // scores.heads_per_kv_group}")
    return "<br>".join(lines)

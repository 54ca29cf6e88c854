"""Figures, from plain arrays: they know nothing of how a score came about."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from safehead_tl._heads import Head


def heatmap(
    values: Float[Tensor, "layer head"],
    *,
    ranked: Sequence[Head],
    unit: str,
    title: str,
    subtitle: str,
    marked: Sequence[Head] = (),
    marked_as: str = "marked",
    outlined: int = 3,
    heads_per_kv_group: int = 1,
) -> go.Figure:
    """A layer-by-head heatmap; hovering a cell names its head, score and rank.

    Args:
        values: the scores; NaN leaves a cell empty.
        ranked: the scored heads, the highest first.
        unit: what a score is, and its unit.
        title: what was measured.
        subtitle: on what.
        marked: heads to mark with a cross.
        marked_as: what they are.
        outlined: how many of the highest scores to outline.
        heads_per_kv_group: how many neighbouring heads share a key/value head.
    """
    n_layers, n_heads = values.shape
    rank = {head: number for number, head in enumerate(ranked, 1)}
    text = [
        [
            _hover(Head(layer, head), values, unit, rank) + _kv_group(head, heads_per_kv_group)
            for head in range(n_heads)
        ]
        for layer in range(n_layers)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(),
            text=text,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            colorscale="Cividis",
            zmin=0,
            zmax=max((values[head].item() for head in ranked[:1]), default=0) or 1,
            colorbar={"title": {"text": unit, "side": "right"}, "exponentformat": "e"},
            xgap=1,
            ygap=1,
        )
    )
    for head in ranked[:outlined]:
        figure.add_shape(
            type="rect",
            x0=head.head - 0.48,
            x1=head.head + 0.48,
            y0=head.layer - 0.48,
            y1=head.layer + 0.48,
            line={"color": "#d55e00", "width": 3},
        )
    if marked:
        figure.add_scatter(
            x=[head.head for head in marked],
            y=[head.layer for head in marked],
            mode="markers",
            marker={"symbol": "x", "size": 9, "color": "#cc79a7"},
            hoverinfo="skip",
            showlegend=False,
        )
    notes = [f"outlined: the {min(outlined, len(ranked))} highest"] if outlined and ranked else []
    notes += [f"cross: {marked_as} ({', '.join(map(str, marked))})"] if marked else []
    figure.update_layout(
        title={"text": f"{title}<br><sup>{'; '.join([subtitle, *notes])}</sup>"},
        template="plotly_white",
        xaxis=_axis("head", n_heads),
        yaxis=_axis("layer", n_layers) | {"autorange": "reversed"},
        width=max(520, min(1400, 190 + 46 * n_heads)),
        height=max(380, min(1400, 170 + 46 * n_layers)),
    )
    return figure


def _axis(title: str, count: int) -> dict[str, object]:
    step = 1 if count <= 16 else 2 if count <= 32 else 4
    return {
        "title": {"text": title},
        "dtick": step,
        "tick0": 0,
        "showgrid": False,
        "zeroline": False,
    }


def _hover(head: Head, values: Tensor, unit: str, rank: dict[Head, int]) -> str:
    if head not in rank:
        return f"<b>{head}</b><br>not scored"
    return f"<b>{head}</b><br>{values[head]:.4g} ({unit})<br>rank {rank[head]} of {len(rank)}"


def _kv_group(head: int, size: int) -> str:
    if size == 1:
        return ""
    first = head // size * size
    return f"<br>KV group {first // size}: heads {first} to {first + size - 1}"

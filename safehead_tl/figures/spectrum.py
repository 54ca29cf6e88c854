"""The principal angles by which ablation turns the prompts' states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.figures.captions import (
    ablation_words,
    head_words,
    model_words,
    prompt_words,
    site_words,
)
from safehead_tl.figures.style import COLOURS, lay_out

if TYPE_CHECKING:
    from safehead_tl.measures import LastStates

WIDTH, EACH, HEIGHT = 480, 40, 300


def spectrum_figure(states: LastStates, rank: int, centre: bool) -> go.Figure:
    """A bar for each angle, in degrees at the left and radians at the right."""
    radians = states.angles(rank, centre).tolist()
    degrees = [math.degrees(angle) for angle in radians]
    numbers = list(range(1, rank + 1))
    top = min(90.0, 1.15 * max(degrees)) or 1.0
    middle, half = (rank + 1) / 2, max(rank, 6) / 2 + 0.1
    figure = go.Figure()
    figure.add_bar(
        x=numbers,
        y=degrees,
        marker={"color": COLOURS["ablated"]},
        hovertext=[
            f"<b>angle {number} of {rank}</b><br>{degree:.4g}° = {angle:.4g} rad"
            for number, degree, angle in zip(numbers, degrees, radians, strict=True)
        ],
        hoverinfo="text",
    )
    figure.add_scatter(  # nothing to see: it gives the second axis something to measure
        x=numbers,
        y=radians,
        yaxis="y2",
        mode="markers",
        marker={"opacity": 0},
        hoverinfo="skip",
    )
    figure.update_layout(
        bargap=0.3,
        xaxis={
            "title": {"text": "principal angle, the smallest first"},
            "tickvals": numbers if rank <= 20 else numbers[4::5],
            "range": [middle - half, middle + half],
            "showgrid": False,
        },
        yaxis={"title": {"text": "degrees"}, "range": [0, top], "exponentformat": "e"},
        yaxis2={
            "title": {"text": "radians"},
            "range": [0, math.radians(top)],
            "overlaying": "y",
            "side": "right",
            "tickmode": "auto",
            "showgrid": False,
            "exponentformat": "e",
        },
    )
    provenance = states.provenance
    centred = "centred" if centre else "uncentred"
    total = sum(radians)
    return lay_out(
        figure,
        f"{head_words(states.heads)}: how {ablation_words(provenance)} turns the prompts' states",
        [
            f"{model_words(provenance)}, {prompt_words(provenance)}",
            f"rank {rank}, {centred}, {site_words(provenance.settings['site'])}",
            f"sum of angles (generalized Ships) {total:.4g} rad = {math.degrees(total):.4g}°",
        ],
        plot=(max(WIDTH, EACH * rank), HEIGHT),
        margin={"r": 80},
    )

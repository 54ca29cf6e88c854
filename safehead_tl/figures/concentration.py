"""The figure of attack success against the number of ablated heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from safehead_tl.figures.captions import ablation_words, model_words, prompt_words
from safehead_tl.figures.style import COLOURS, SERIES, SYMBOLS, error_bars, lay_out, plain
from safehead_tl.generation import METRICS, Metric

if TYPE_CHECKING:
    from safehead_tl.evaluation import Concentration

BAND = "rgba(122,122,122,0.2)"
"""The colour of controls, thinned."""


def concentration_figure(found: Concentration, metric: Metric) -> go.Figure:
    """A curve for each order with Wilson intervals; random orders as a band and their mean."""
    counts = list(range(found.size + 1))
    figure = go.Figure()
    if found.random_orders:
        curves = np.array(found.random_curves(metric))
        figure.add_scatter(
            x=[*counts, *reversed(counts)],
            y=[*curves.max(0), *reversed(curves.min(0))],
            fill="toself",
            fillcolor=BAND,
            mode="none",
            hoverinfo="skip",
            name=f"range of {len(curves)} random orders",
        )
        figure.add_scatter(
            x=counts,
            y=curves.mean(0),
            mode="lines",
            line={"color": COLOURS["controls"], "dash": "dot"},
            name=f"random orders, mean: area {np.mean(found.random_areas(metric)):.2f}",
        )
    for number, (order, heads) in enumerate(found.orders.items()):
        rates = found.curve(order, metric)
        area, (low, high) = found.area(order, metric)
        shares = [rate.share for rate in rates]
        colour = SERIES[number % len(SERIES)]
        added = ["unablated", *(f"+ {head}" for head in heads)]
        figure.add_scatter(
            x=counts,
            y=shares,
            error_y=error_bars(shares, [rate.interval for rate in rates])
            | {"color": colour, "thickness": 1.2},
            mode="lines+markers",
            line={"color": colour},
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9},
            hovertext=[f"{what}: {rate}" for what, rate in zip(added, rates, strict=True)],
            hoverinfo="text",
            name=f"{plain(order)}: area {area:.2f} [{low:.2f}, {high:.2f}]",
        )
    figure.update_layout(
        xaxis={"title": {"text": "heads ablated"}, "dtick": 1},
        yaxis={
            "title": {"text": "share of responses"},
            "range": [-0.03, 1.05],
            "tickformat": ".0%",
        },
    )
    provenance = found.provenance
    return lay_out(
        figure,
        f"{METRICS[metric].capitalize()} as heads are ablated one after the other",
        [
            f"{model_words(provenance)}, {ablation_words(provenance)}",
            prompt_words(provenance, "harmful"),
            f"judge {plain(repr(provenance.settings['judge']['name']))}",
            "95 % Wilson intervals",
            *(plain(note, 999) for note in found.notes()),
        ],
        plot=(656, 320),
        legend=-(-len(figure.data) // 2),
    )

"""What a run will take, by the number of GPUs: hours, GPU hours, and how much of them is idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safehead_tl.figures.style import COLOURS, lay_out, plain

if TYPE_CHECKING:
    from safehead_tl.cluster import Forecast

WIDTH, HEIGHT = 560, 460


def plan_figure(forecast: Forecast, most: int) -> go.Figure:
    """Hours and GPU hours above, the shares of time idle and starting below.

    Args:
        forecast: what to draw.
        most: the most replicas.
    """
    frame = forecast.to_frame(most)
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    unit = "GPU" if forecast.gpus else "machine"
    for name, column, colour, row in (
        ("hours", "hours", "score", 1),
        (f"{unit} hours", "gpu_hours", "ablated", 1),
        ("idle", "idle", "controls", 2),
        ("starting", "starting", "marked", 2),
    ):
        share = row == 2
        figure.add_scatter(
            name=name,
            x=frame["gpus"],
            y=100 * frame[column] if share else frame[column],
            mode="lines+markers",
            line={"color": COLOURS[colour], "width": 2},
            customdata=frame[["replicas", "pieces_each"]],
            hovertemplate=f"<b>%{{x}} {unit}s</b>: %{{y:.3g}} {'% ' if share else ''}{name}<br>"
            "%{customdata[0]} replicas, %{customdata[1]:.3g} pieces each<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_xaxes(type="log", dtick=0.30103, tickformat="d", tickangle=0)
    figure.update_xaxes(title={"text": f"{unit}s"}, row=2)
    figure.update_yaxes(type="log", exponentformat="power", title={"text": "hours"}, row=1)
    figure.update_yaxes(title={"text": "% of the time"}, rangemode="tozero", row=2)
    notes = [
        plain(forecast.told()["run"], 120),
        f"{len(forecast.pieces):,} pieces",
        f"{forecast.gpus_each} GPUs a replica" if forecast.gpus_each > 1 else "",
        f"at {forecast.rate:.3g} floating point operations a second",
        "no replica slow or lost",
    ]
    title = "What a run takes, by how many share it"
    return lay_out(figure, title, list(filter(None, notes)), plot=(WIDTH, HEIGHT), legend=1)

"""Draws build/benchmarks/scan.json as one page: where the time goes, and how it grows.

python benchmarks/picture.py   # writes build/benchmarks/scan.html
"""

from __future__ import annotations

import json
from pathlib import Path

from plotly.subplots import make_subplots

FOLDER = Path("build/benchmarks")
BLUE, GREY, ORANGE = "#0072B2", "#999999", "#D55E00"  # Okabe-Ito: safe for the colour-blind

UNITS = {"prompts": "prompts", "heads": "heads", "prefix": "tokens in the prefix"}


def main() -> None:
    """Draws it."""
    record = json.loads((FOLDER / "scan.json").read_text())
    figure = make_subplots(
        rows=2,
        cols=3,
        specs=[[{"colspan": 3}, None, None], [{}, {}, {}]],
        row_heights=[0.55, 0.45],
        vertical_spacing=0.17,
        subplot_titles=(
            "All 96 heads of 12 layers x 8 heads, width 512; 32 prompts of 24 tokens",
            "more prompts",
            "more heads",
            "a longer shared prefix",
        ),
    )
    bars = [
        (f"<b>{prompts}</b>: {step}", seconds)
        for prompts, steps in record["steps"].items()
        for step, seconds in steps.items()
    ]
    first = {prompts: next(iter(steps.values())) for prompts, steps in record["steps"].items()}
    whole = [first[prompts] for prompts, steps in record["steps"].items() for _ in steps]
    figure.add_bar(
        y=[name for name, _ in bars],
        x=[seconds for _, seconds in bars],
        text=[f"{s:.1f} s ({w / s:.1f}x)" for (_, s), w in zip(bars, whole, strict=True)],
        textposition="outside",
        cliponaxis=False,
        orientation="h",
        marker_color=[GREY if "(a)" in n else ORANGE if "limit" in n else BLUE for n, _ in bars],
        showlegend=False,
        row=1,
        col=1,
    )
    figure.update_yaxes(autorange="reversed", automargin=True, row=1, col=1)
    longest = max(seconds for _, seconds in bars)
    figure.update_xaxes(range=[0, 1.15 * longest], title="seconds", row=1, col=1)
    for column, name in enumerate(("prompts", "heads", "prefix"), 1):
        rows = record["growth"][name]
        shared = {"seconds": "ours", "seconds_not_shared": "shared_prefix=False"}
        for key, label in shared.items():
            if key in rows[0]:
                figure.add_scatter(
                    x=[row[name] for row in rows],
                    y=[row[key] for row in rows],
                    mode="lines+markers",
                    name=label,
                    line={"color": BLUE if key == "seconds" else GREY},
                    showlegend=column == 3,
                    row=2,
                    col=column,
                )
        figure.update_xaxes(title=UNITS[name], rangemode="tozero", row=2, col=column)
        figure.update_yaxes(title="seconds", rangemode="tozero", row=2, col=column)
    figure.update_layout(
        template="plotly_white",
        width=1100,
        height=760,
        margin={"l": 20, "r": 40, "t": 50, "b": 50},
        legend={"x": 0.42, "y": 0.5, "orientation": "h"},
        font={"size": 13},
    )
    figure.write_html(FOLDER / "scan.html", config={"displayModeBar": False})


if __name__ == "__main__":
    main()

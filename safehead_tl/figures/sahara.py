"""The path of Sahara: the head that each step chose, and the runner-up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.figures.captions import (
    MEASURES,
    ablation_words,
    head_words,
    model_words,
    prompt_words,
    rotation_words,
)
from safehead_tl.figures.style import COLOURS, NOTE, lay_out
from safehead_tl.heads import Head

if TYPE_CHECKING:
    from safehead_tl.results import HeadGroup

STEP, HEIGHT = 92, 300


def sahara_figure(found: HeadGroup) -> go.Figure:
    """The group's score after each step, and what it would be with the runner-up instead."""
    count = len(found.heads)
    steps = list(range(1, count + 1))
    seconds = [_runner_up(found, step) for step in steps]
    others = [(step, *pair) for step, pair in zip(steps, seconds, strict=True) if pair]
    figure = go.Figure()
    figure.add_scatter(
        x=[place for step, _, _ in others for place in (step, step, None)],
        y=[place for step, _, score in others for place in (found.scores[step - 1], score, None)],
        mode="lines",
        line={"color": COLOURS["quiet"], "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        name="the group with the chosen head",
        x=steps,
        y=found.scores,
        mode="lines+markers+text",
        text=[f"<b>+ {head}</b>" for head in found.heads],
        textposition="top left",
        line={"color": COLOURS["ablated"]},
        marker={"size": 10},
        hovertext=[_hover(found, step, head) for step, head in enumerate(found.heads, 1)],
        hoverinfo="text",
    )
    figure.add_scatter(
        name="the same with the runner-up instead",
        x=[step for step, _, _ in others],
        y=[score for _, _, score in others],
        mode="markers+text",
        text=[str(head) for _, head, _ in others],
        textposition="bottom right",
        textfont={"size": NOTE, "color": COLOURS["controls"]},
        marker={
            "symbol": "diamond-open",
            "size": 9,
            "color": COLOURS["controls"],
            "line": {"width": 2},
        },
        hovertext=[
            f"<b>{head}</b> instead of {found.heads[step - 1]}<br>{_angle(found, score)}, "
            f"{_less(found, found.scores[step - 1] - score)}"
            for step, head, score in others
        ],
        hoverinfo="text",
    )
    if found.runners_up:
        figure.add_scatter(
            name="other groups that the beam ended with",
            x=[count] * len(found.runners_up),
            y=[score for _, score in found.runners_up],
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 16, "color": COLOURS["score"]},
            hovertext=[
                f"<b>{head_words(heads)}</b><br>{_angle(found, score)}, "
                f"{_less(found, found.scores[-1] - score)}"
                for heads, score in found.runners_up
            ],
            hoverinfo="text",
        )
    highest = max([*found.scores, *(score for _, _, score in others)]) or 1.0
    usual, name = found.steps[0].measure == "generalized_ships", MEASURES[found.steps[0].measure]
    sahara = "Sahara" if usual else f"Sahara by {name}"
    name, provenance = "generalized Ships" if usual else name, found.provenance
    figure.update_layout(
        xaxis={
            "title": {"text": "heads ablated together"},
            "tickvals": steps,
            "range": [0.25, count + 0.6],
            "showgrid": False,
        },
        yaxis={
            "title": {"text": f"{name}, {found.steps[0].unit}"},
            "range": [-0.1 * highest, 1.15 * highest],
            "zeroline": True,
            "exponentformat": "e",
        },
    )
    beam = provenance.settings.get("beam", 1)
    return lay_out(
        figure,
        f"{sahara}: the head that each step adds, under {ablation_words(provenance)}",
        [
            f"{model_words(provenance)}, {prompt_words(provenance)}",
            f"rotation away from the original model ({rotation_words(provenance)})",
            *([f"the best of a beam of {beam}: no step need be the best by itself"] * (beam > 1)),
        ],
        plot=(max(500, STEP * count), HEIGHT),
        margin={"l": 80},
        legend=1 + bool(found.runners_up),
    )


def _runner_up(found: HeadGroup, step: int) -> tuple[Head, float] | None:
    """The best of the heads that a step did not choose."""
    chosen = found.heads[step - 1]
    others = [pair for pair in found.steps[step - 1].top(2) if pair[0] != chosen]
    return others[0] if others else None


def _hover(found: HeadGroup, step: int, head: Head) -> str:
    score = found.scores[step - 1]
    before = found.scores[step - 2] if step > 1 else 0.0
    return (
        f"<b>step {step}: {head}</b><br>{_angle(found, score)}<br>"
        f"{score - before:+.4g}{_unit(found)} by this head"
    )


def _less(found: HeadGroup, score: float) -> str:
    """How far below the group's own score; the step of a beam's path may be below another."""
    return f"{_angle(found, abs(score))} {'more' if score < 0 else 'less'}"


def _unit(found: HeadGroup) -> str:
    return {"radians": " rad", "degrees": "°"}[found.steps[0].unit]


def _angle(found: HeadGroup, score: float) -> str:
    also = f" ({math.degrees(score):.3g}°)" if found.steps[0].unit == "radians" else ""
    return f"{score:.4g}{_unit(found)}{also}"

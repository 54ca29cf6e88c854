"""The figure of an evaluation: shares with intervals, next to random heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safehead_tl.figures.captions import ablation_words, head_words, model_words, prompt_words
from safehead_tl.figures.style import COLOURS, FONT, error_bars, lay_out, plain, wrapped
from safehead_tl.generation import SHARES
from safehead_tl.results import Rate

if TYPE_CHECKING:
    from safehead_tl.evaluation import Evaluation, Summary

PLACES = {"unablated": -0.27, "ablated": 0.0, "controls": 0.27}
WIDTH = 0.25
SPACE = 796
"""Pixels that all sets of prompts share."""
DOT, NUMBERED = 7, 17
"""Pixels of a dot, and of one with a number in it."""
SAID = 5
"""Of how many sets the heads are named."""


def evaluation_figure(evaluation: Evaluation) -> go.Figure:
    """Bars for the unablated and the ablated model, a point for each control set."""
    summaries = evaluation.summaries()
    sets = list(dict.fromkeys(summary.prompts for summary in summaries))
    figure = make_subplots(
        cols=len(sets), shared_yaxes=True, subplot_titles=[f"{name} prompts" for name in sets]
    )
    for column, name in enumerate(sets, 1):
        shown = [summary for summary in summaries if summary.prompts == name]
        for trace in _traces(evaluation, shown):
            figure.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
        figure.update_xaxes(
            tickvals=list(range(len(shown))),
            ticktext=["<br>".join(wrapped(SHARES[name][row.metric], 14)) for row in shown],
            tickangle=0,
            col=column,
        )
    figure.update_annotations(font={"size": FONT})
    figure.update_yaxes(range=[-0.02, 1.05], tickformat=".0%")
    figure.update_yaxes(title={"text": "share of responses"}, col=1)
    return lay_out(
        figure,
        _title(evaluation),
        _notes(evaluation),
        plot=(SPACE if len(sets) > 1 else 430, 270),
        margin={"t": 40},
        legend=1,
    )


def _title(evaluation: Evaluation) -> str:
    if not evaluation.heads:
        return "How the model answers. No heads ablated"
    own = evaluation.ablated_words() if evaluation.per_query else head_words(evaluation.heads)
    return f"How the model answers with {own} ablated: {ablation_words(evaluation.provenance)}"


def _notes(evaluation: Evaluation) -> list[str]:
    provenance = evaluation.provenance
    notes = [
        f"{model_words(provenance)}, {prompt_words(provenance, 'harmful')}",
        f"judge {plain(repr(provenance.settings['judge']['name']))}",
        "bars: 95 % Wilson intervals",
    ]
    return [*notes, *evaluation.notes()]


def _traces(evaluation: Evaluation, summaries: list[Summary]) -> list[go.Bar | go.Scatter]:
    traces = [_bar("unablated", [summary.unablated for summary in summaries])]
    if evaluation.heads:
        rates = [summary.ablated for summary in summaries if summary.ablated is not None]
        traces.append(_bar("ablated", rates))
    if evaluation.controls:
        traces.append(_controls(evaluation, summaries))
    return traces


def _controls(evaluation: Evaluation, summaries: list[Summary]) -> go.Scatter:
    """A dot for each share that sets of random heads lead to; how many do is written in it."""
    names = [name.partition(": ")[2] for name in evaluation.conditions[-len(evaluation.controls) :]]
    points: list[tuple[int, float, list[str]]] = []
    for place, summary in enumerate(summaries):
        found: dict[float, list[str]] = {}
        for share, name in zip(summary.controls, names, strict=True):
            found.setdefault(share, []).append(name)
        points += [(place, share, found[share]) for share in sorted(found)]
    return go.Scatter(
        name="sets of random heads ablated, and how many",
        x=[place + PLACES["controls"] for place, _, _ in points],
        y=[share for _, share, _ in points],
        text=[str(len(sets)) if len(sets) > 1 else "" for _, _, sets in points],
        textfont={"color": "white", "size": 10},
        mode="markers+text",
        cliponaxis=False,
        marker={
            "color": COLOURS["controls"],
            "opacity": 1,
            "size": [DOT if len(sets) == 1 else NUMBERED for _, _, sets in points],
        },
        hovertext=[
            f"{share:.2f} with {'; '.join(sets[:SAID])}"
            + (f" and {len(sets) - SAID} more" if len(sets) > SAID else "")
            for _, share, sets in points
        ],
        hoverinfo="text",
    )


def _bar(name: str, rates: list[Rate]) -> go.Bar:
    return go.Bar(
        name=name,
        x=[place + PLACES[name] for place in range(len(rates))],
        y=[rate.share for rate in rates],
        width=WIDTH,
        error_y=error_bars([rate.share for rate in rates], [rate.interval for rate in rates]),
        marker={"color": COLOURS[name]},
        hovertext=[f"{name}: {rate}" for rate in rates],
        hoverinfo="text",
    )

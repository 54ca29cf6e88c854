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


def evaluation_figure(evaluation: Evaluation) -> go.Figure:
    """Bars for the unablated and the ablated model, a point for each control set.

    Args:
        evaluation: what to draw.
    """
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
        plot=(430 * len(sets), 270),
        margin={"t": 40},
        legend=1,
    )


def _title(evaluation: Evaluation) -> str:
    if not evaluation.heads:
        return "No heads ablated"
    own = evaluation.ablated_words().capitalize() if evaluation.per_query else None
    return f"{own or head_words(evaluation.heads)}: {ablation_words(evaluation.provenance)}"


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
        count = len(evaluation.controls)
        spread = [WIDTH * ((number + 0.5) / count - 0.5) for number in range(count)]
        points = [
            (place + PLACES["controls"] + aside, share, name.partition(": ")[2])
            for place, summary in enumerate(summaries)
            for aside, share, name in zip(
                spread, summary.controls, evaluation.conditions[-count:], strict=True
            )
        ]
        traces.append(
            go.Scatter(
                name="random heads ablated",
                x=[x for x, _, _ in points],
                y=[share for _, share, _ in points],
                mode="markers",
                marker={"color": COLOURS["controls"], "size": 5, "opacity": 0.8},
                hovertext=[f"{name}: {y:.2f}" for _, y, name in points],
                hoverinfo="text",
            )
        )
    return traces


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

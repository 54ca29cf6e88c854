"""The command `ships`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from rich.table import Column, Table

import safehead_tl as sh
from safehead_tl.cli.options import (
    AblationOptions,
    ModelOptions,
    PromptOptions,
    ScanOptions,
    Top,
    chosen_screen,
    grouped,
)
from safehead_tl.cli.output import SavedOutput


@grouped
def ships(
    model: ModelOptions,
    prompts: PromptOptions,
    ablation: AblationOptions,
    scan: ScanOptions,
    output: SavedOutput,
    answer: Annotated[
        str | None,
        typer.Option(
            help="A given answer, such as a refusal: score by the next token at each of its "
            "places, averaged, instead of at the prompt's end alone."
        ),
    ] = None,
    top: Top = 10,
) -> None:
    """Score every head by how far ablating it moves the next token (nats)."""
    form, how = prompts.form, scan.chosen()
    texts, what = prompts.load(), ablation.chosen()
    scores = sh.ships(
        model.load(),
        texts,
        template=form,
        ablation=what,
        answer=answer,
        screen=chosen_screen(scan.screen),
        run=how,
    )
    output.keep(scores, scores.heatmap)
    output.tell(ranking(f"{model.model}: Ships, {run_words(scores)}", scores, top))
    if scores.screening is not None:
        output.tell(scores.screening.sentence())


def run_words(result: sh.HeadScores | sh.HeadGroup | sh.Knockout) -> str:
    """What was done to which prompts, for a title."""
    from safehead_tl.figures import prompt_words

    return f"{result.provenance.ablation['name']}, {prompt_words(result.provenance)}"


def ranking(title: str, scores: sh.HeadScores, top: int, planted: Sequence[sh.Head] = ()) -> Table:
    """The highest scores."""
    right = partial(Column, justify="right")
    table = Table(right("rank"), "head", right(f"score ({scores.unit})"), title=title)
    for rank, (head, score) in enumerate(scores.top(top), 1):
        table.add_row(
            str(rank), f"{head} (planted)" if head in planted else str(head), f"{score:.4g}"
        )
    return table

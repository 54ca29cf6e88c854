"""The command `ships`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import SavedOutput

if TYPE_CHECKING:
    from safehead_tl.results import Significance


@options.grouped
def ships(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    scan: options.ScanOptions,
    null: options.NullOptions,
    output: SavedOutput,
    answer: Annotated[
        str | None,
        typer.Option(
            help="A given answer, such as a refusal: score by the next token at each of its "
            "places, averaged, instead of at the prompt's end alone."
        ),
    ] = None,
    top: options.Top = 10,
) -> None:
    """Score every head by how far ablating it moves the next token (nats)."""
    told, texts = arguments(prompts, scan, ablation), prompts.load()
    others = null.load(prompts, scan.screen)
    score: Callable[..., sh.HeadScores] = partial(
        sh.ships, model.load_for(told["run"]), answer=answer, **told
    )
    scores = score(texts)
    found = null.test(scores, others, score, told["run"])
    output.keep(scores, scores.heatmap, significance=found)
    output.tell(ranking(f"{model.model}: Ships, {run_words(scores)}", scores, top, null=found))
    for each in (scores.screening, found):
        if each is not None:
            output.tell(each.sentence())


def run_words(result: sh.HeadScores | sh.HeadGroup | sh.Knockout) -> str:
    """What was done to which prompts, for a title."""
    from safehead_tl.figures import prompt_words

    return f"{result.provenance.ablation['name']}, {prompt_words(result.provenance)}"


def ranking(
    title: str,
    scores: sh.HeadScores,
    top: int,
    planted: Sequence[sh.Head] = (),
    null: Significance | None = None,
) -> Table:
    """The highest scores, with their p-values if there are any."""
    right = partial(Column, justify="right")
    table = Table(right("rank"), "head", right(f"score ({scores.unit})"), title=title)
    if null is not None:
        table.add_column("p", justify="right")
    for rank, (head, score) in enumerate(scores.top(top), 1):
        named = f"{head} (planted)" if head in planted else str(head)
        p = () if null is None else (f"{null.p[head]:.2g}",)
        table.add_row(str(rank), named, f"{score:.4g}", *p)
    return table

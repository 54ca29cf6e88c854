"""The command `report`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import Overwrite, check_outputs, show
from safehead_tl.errors import SafeheadError


@options.grouped
def report(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    judges: options.JudgeOptions,
    run: options.RunOptions,
    view: options.ViewOptions,
    out: Annotated[Path, typer.Option(help="The page to write, .html.")] = Path("report.html"),
    against: Annotated[
        Path | None,
        typer.Option(
            help="Scores of other prompts that --save wrote: which heads score higher here."
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Other scores of the model that --save wrote, or a map; repeatable."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="Another ablation to show beside --ablation, by name; repeatable."),
    ] = None,
    group: Annotated[
        Path | None,
        typer.Option(help="A group that sahara --save wrote, to tell of and to ablate together."),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="What evaluate --save wrote, to tell of.")
    ] = None,
    knockout: Annotated[
        Path | None, typer.Option(help="What knockout --save wrote, for arrows on the map.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the highest heads in full.")] = 24,
    shown: Annotated[int, typer.Option(help="How many prompts the page shows.")] = 8,
    overwrite: Overwrite = False,
) -> None:
    """Write one offline page on which every head can be looked at."""
    check_outputs(
        {"--out": out},
        [
            model.model,
            prompts.prompts,
            *(view.scores, against, group, evaluation, knockout),
            *(also or ()),
        ],
        overwrite,
    )
    told, texts = arguments(prompts, run, ablation, view, judges), prompts.load()
    path = sh.report(
        model.load(),
        texts,
        out,
        against=None if against is None else sh.HeadScores.load(against),
        also=[*map(_scores, also or ())],
        beside=beside or (),
        group=None if group is None else sh.HeadGroup.load(group),
        evaluation=None if evaluation is None else sh.Evaluation.load(evaluation),
        knockout=None if knockout is None else sh.Knockout.load(knockout),
        top=top,
        shown=shown,
        overwrite=overwrite,
        **told,
    )
    show(f"Wrote {path} ({path.stat().st_size / 1e6:.2f} MB): open it in a browser.")


def _scores(path: Path) -> sh.HeadScores:
    """Scores of heads: by themselves, or of a map of attack success or of contributions."""
    with suppress(SafeheadError):
        return sh.AsrMap.load(path).scores()
    with suppress(SafeheadError):
        return sh.DirectAttribution.load(path).heads
    return sh.HeadScores.load(path)

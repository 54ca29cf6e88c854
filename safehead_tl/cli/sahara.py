"""The command `sahara`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer
from rich.table import Column, Table

import safehead_tl as sh
from safehead_tl.cli.options import (
    AblationOptions,
    ModelOptions,
    PromptOptions,
    ScanOptions,
    chosen_screen,
    grouped,
)
from safehead_tl.cli.output import SavedOutput
from safehead_tl.cli.ships import run_words


@grouped
def sahara(
    model: ModelOptions,
    prompts: PromptOptions,
    ablation: AblationOptions,
    scan: ScanOptions,
    output: SavedOutput,
    size: Annotated[int, typer.Option(help="How many heads to choose.")] = 3,
    rank: Annotated[int, typer.Option(help="How many singular vectors to compare.")] = 1,
    centre: Annotated[bool, typer.Option(help="Subtract the mean state first.")] = False,
    site: Annotated[
        Literal["final_norm", "resid_post"], typer.Option(help="Where the states are read.")
    ] = "final_norm",
) -> None:
    """Search greedily for the group of heads that turns the prompts' states furthest (radians)."""
    form, how = prompts.form, scan.chosen()
    texts, what = prompts.load(), ablation.chosen()
    group = sh.sahara(
        model.load(),
        texts,
        size,
        rank=rank,
        centre=centre,
        site=site,
        template=form,
        ablation=what,
        screen=chosen_screen(scan.screen),
        run=how,
    )
    output.keep(group, group.figure)
    output.tell(choices(f"{model.model}: Sahara, {run_words(group)}", group))
    for number, step in enumerate(group.steps, 1):
        if step.screening is not None:
            output.tell(f"Step {number}. {step.screening.sentence()}")


def choices(title: str, group: sh.HeadGroup) -> Table:
    """Sahara's choices, step by step."""
    right = partial(Column, justify="right")
    table = Table(right("step"), "head added", right("group's shift (radians)"), title=title)
    for step, (head, score) in enumerate(zip(group.heads, group.scores, strict=True), 1):
        table.add_row(str(step), str(head), f"{score:.4g}")
    return table

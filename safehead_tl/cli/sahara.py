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
    beam: Annotated[
        int, typer.Option(help="How many groups each step goes on with; 1 is greedy.")
    ] = 1,
    rank: Annotated[int, typer.Option(help="How many singular vectors to compare.")] = 1,
    centre: Annotated[bool, typer.Option(help="Subtract the mean state first.")] = False,
    site: Annotated[
        Literal["final_norm", "resid_post"], typer.Option(help="Where the states are read.")
    ] = "final_norm",
) -> None:
    """Search for the group of heads that turns the prompts' states furthest (radians)."""
    form, how = prompts.form, scan.chosen()
    texts, what = prompts.load(), ablation.chosen()
    group = sh.sahara(
        model.load(),
        texts,
        size,
        beam=beam,
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
    if group.runners_up:
        output.tell(others(group))
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


def others(group: sh.HeadGroup) -> Table:
    """The groups that the one found was ahead of."""
    table = Table(title="Other groups that the beam ended with")
    table.add_column("heads, as they were added")
    table.add_column("group's shift (radians)", justify="right")
    for heads, score in group.runners_up:
        table.add_row(", ".join(map(str, heads)), f"{score:.4g}")
    return table

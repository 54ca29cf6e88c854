"""The command `sahara`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.table import Column, Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import SavedOutput
from safehead_tl.cli.ships import run_words


@options.grouped
def sahara(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    states: options.RotationOptions,
    scan: options.ScanOptions,
    output: SavedOutput,
    size: Annotated[int, typer.Option(help="How many heads to choose.")] = 3,
    beam: Annotated[
        int, typer.Option(help="How many groups each step goes on with; 1 is greedy.")
    ] = 1,
) -> None:
    """Search for the group of heads that turns the prompts' states furthest (radians)."""
    told, texts = arguments(prompts, scan, ablation, states), prompts.load()
    group = sh.sahara(model.load_for(told["run"]), texts, size, beam=beam, **told)
    output.keep(group, group.figure)
    output.tell(choices(f"{model.model}: {title(group)}, {run_words(group)}", group))
    if group.runners_up:
        output.tell(others(group))
    for number, step in enumerate(group.steps, 1):
        if step.screening is not None:
            output.tell(f"Step {number}. {step.screening.sentence()}")


def title(group: sh.HeadGroup) -> str:
    """Sahara, and what it searched by unless it is generalized Ships."""
    from safehead_tl.figures import MEASURES

    measure = group.steps[0].measure
    return "Sahara" if measure == "generalized_ships" else f"Sahara by {MEASURES[measure]}"


def choices(title: str, group: sh.HeadGroup) -> Table:
    """Sahara's choices, step by step."""
    right, unit = partial(Column, justify="right"), group.steps[0].unit
    table = Table(right("step"), "head added", right(f"group's shift ({unit})"), title=title)
    for step, (head, score) in enumerate(zip(group.heads, group.scores, strict=True), 1):
        table.add_row(str(step), str(head), f"{score:.4g}")
    return table


def others(group: sh.HeadGroup) -> Table:
    """The groups that the one found was ahead of."""
    shift = Column("group's shift (radians)", justify="right")
    table = Table("heads, as they were added", shift, title="Other groups that the beam ended with")
    for heads, score in group.runners_up:
        table.add_row(", ".join(map(str, heads)), f"{score:.4g}")
    return table

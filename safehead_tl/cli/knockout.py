"""The command `knockout`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.log_odds import OpeningOptions
from safehead_tl.cli.output import SavedOutput
from safehead_tl.cli.ships import run_words
from safehead_tl.errors import SafeheadError


@options.grouped
def knockout(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    opening: OpeningOptions,
    ablation: options.AblationOptions,
    run: options.RunOptions,
    output: SavedOutput,
    heads: options.Heads = None,
    scan: Annotated[
        Path | None,
        typer.Option(help="Scores that --save wrote: the --top highest heads, besides --heads."),
    ] = None,
    top: options.Top = 6,
    measure: Annotated[
        Literal["ships", "generalized_ships"], typer.Option(help="What is scored.")
    ] = "ships",
    harmless: Annotated[
        str | None,
        typer.Option(
            help="Score refusal log-odds, by how the model's answers open, and those to these "
            "prompts, with which it helps; or by --refusal and --compliance."
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="How many singular vectors to compare.")] = 1,
    centre: Annotated[bool, typer.Option(help="Subtract the mean state first.")] = False,
) -> None:
    """Ablate heads two by two: which carry one mechanism, which are backups, the best pair."""
    told, texts = arguments(prompts, run, ablation), prompts.load()
    scanned = () if scan is None else [head for head, _ in sh.HeadScores.load(scan).top(top)]
    chosen = [*options.chosen_heads(heads), *scanned]
    if not chosen:
        raise SafeheadError("which heads? Give --heads, or --scan with scores that --save wrote")
    loaded, openings = model.load(), None
    if harmless is not None or opening.refusal or opening.compliance:
        openings = opening.chosen(loaded, texts, harmless, told["template"])
    found = sh.knockout(
        loaded,
        texts,
        chosen,
        measure=measure,
        openings=openings,
        rank=rank,
        centre=centre,
        **told,
    )
    output.keep(found, found.figure)
    output.tell(pair_table(f"{model.model}: heads in pairs, {run_words(found)}", found))


def pair_table(title: str, found: sh.Knockout) -> Table:
    """Pairs of heads, and what the later one does without the earlier."""
    from safehead_tl.figures import UNITS

    columns = ("pair", "together", "alone", "second without first", "if apart", "")
    table = Table(*columns, title=title, caption=f"Scores: {UNITS[found.measure]}.")
    for row in found.to_frame().to_dict("records"):
        table.add_row(
            f"{row['first']}, {row['second']}",
            f"{row['together']:.4g}",
            f"{row['first_alone']:.4g}, {row['second_alone']:.4g}",
            f"{row['given']:.4g} ({row['change']:+.4g})",
            f"{row['apart'] - row['first_alone']:.4g}",
            "gate, amplifier" if row["gate"] else "backup" if row["backup"] else "",
        )
    return table

"""The command `overlap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli.options import Top, grouped
from safehead_tl.cli.output import DrawnOutput


@grouped
def overlap(
    scans: Annotated[
        list[Path], typer.Argument(help="Scores of two or more scans, as --save writes them.")
    ],
    output: DrawnOutput,
    top: Top = 10,
) -> None:
    """Compare the highest heads of several scans with each other, and with chance."""
    names = {path.stem: path for path in scans}
    if len(names) < len(scans):
        names = {str(path): path for path in scans}
    found = sh.overlap({name: sh.HeadScores.load(path) for name, path in names.items()}, top)
    output.draw(found.figure)
    output.write(found)
    title = f"Heads among the highest {found.top} of two scans"
    columns = ("scans", "shared (by chance, by layer)", "p (by layer)", "Jaccard", "Spearman")
    table = Table(*columns, title=title)
    for row in found.to_frame().to_dict("records"):
        table.add_row(
            f"{row['first']}, {row['second']}",
            f"{row['shared']} ({row['expected_shared']:.1f}, {row['expected_by_layer']:.1f})",
            f"{row['p_at_least']:.1g} ({row['p_by_layer']:.1g})",
            f"{row['jaccard']:.2f}",
            f"{row['spearman']:.2f}",
        )
    output.tell(table)

"""The command `refusal-map`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import SavedOutput


@options.grouped
def refusal_map(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    judges: options.JudgeOptions,
    answers: options.DecodingOptions,
    run: options.RunOptions,
    output: SavedOutput,
    harmless: Annotated[
        str, typer.Option(help="Prompts not to refuse, from a source like --prompts.")
    ],
    heads: Annotated[
        list[str],
        typer.Option(help="Heads to ablate together, such as L1H3,L2H6; repeat it for others."),
    ],
    factor: Annotated[
        list[float] | None,
        typer.Option(help="Also scale each of these by a factor: 0 to 1 weakens; repeat it."),
    ] = None,
    harmless_column: Annotated[str | None, typer.Option(help="The column of --harmless.")] = None,
    harmless_split: Annotated[
        str | None, typer.Option(help="Their split; by default that of --split, except of a file.")
    ] = None,
) -> None:
    """Draw refused harmful against refused harmless prompts, with heads ablated or scaled."""
    told = arguments(prompts, run, ablation, answers)
    given = judges.judge or judges.judge_model or judges.judge_url
    refusal = judges.chosen() if given else "refusal-prefix"
    variants: dict[str, Any] = {}
    for some in heads:
        group = options.chosen_heads(some)
        variants[f"{some} ablated"] = group
        for each in factor or ():
            scaled = {"heads": group, "ablation": sh.ScalingContribution(epsilon=each)}
            variants[f"{some} x {each:g}"] = scaled
    split = harmless_split or (None if Path(harmless).is_file() else prompts.split)
    found = sh.refusal_map(
        model.load_for(told["run"]),
        harmful=prompts.load(),
        harmless=replace(prompts, prompts=harmless, column=harmless_column, split=split).load(),
        variants=variants,
        refusal=refusal,
        **told,
    )
    output.keep(found, found.figure)
    name = Column("variant", no_wrap=True)
    table = Table(name, "harmful refused", "p (Holm)", "harmless refused", "p (Holm)")
    for row in found.to_frame().to_dict("records"):
        one, other = found.refused(row["variant"])
        table.add_row(row["variant"], str(one), _p(row, "harmful"), str(other), _p(row, "harmless"))
    table.title = f"{model.model}: what is refused. Share of answers [95 % interval]"
    output.tell(table)


def _p(row: Mapping[Any, Any], prompts: str) -> str:
    p, corrected = row[f"{prompts}_p"], row[f"{prompts}_holm"]
    return "" if math.isnan(p) else f"{p:.1g} ({corrected:.1g})"

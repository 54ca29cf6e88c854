"""The command `info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli.options import Dtype, ModelName, grouped
from safehead_tl.cli.output import Output


@grouped
def info(
    model: ModelName,
    output: Output,
    dtype: Dtype = "float32",
    prompt_count: Annotated[
        int, typer.Option(min=1, help="Prompts in the scan to estimate.")
    ] = 100,
    prompt_length: Annotated[int, typer.Option(min=1, help="Tokens in the longest of them.")] = 64,
) -> None:
    """Say what a model is, without loading its weights: heads, ablations that are exact, memory."""
    facts = sh.model_facts(
        model, dtype=dtype, prompt_count=prompt_count, prompt_length=prompt_length
    )
    output.write(facts)
    output.tell(fact_sheet(facts))


def fact_sheet(facts: Mapping[str, Any]) -> Table:
    """What a model is, one fact a line."""
    from safehead_tl.scan import readable

    table = Table(title=facts["name"], show_header=False)
    for name, value in facts.items():
        if name == "ablations":
            for ablation, ways in value.items():
                table.add_row(ablation, "; ".join(f"by {way}: {how}" for way, how in ways.items()))
        elif name == "memory":
            table.add_row(
                "memory",
                f"weights {readable(value['weights'])} in {value['dtype']}; a scan of "
                f"{value['prompt_count']} prompts of {value['prompt_length']} tokens takes at "
                f"least {readable(value['scan_at_least'])} more, and runs nothing twice with "
                f"{readable(value['scan_at_ease'])}",
            )
        elif isinstance(value, Mapping):
            told = (f"{key.replace('_', ' ')}: {part}" for key, part in value.items())
            table.add_row(name, "; ".join(told))
        elif name != "name":
            table.add_row(
                name.replace("_", " "), f"{value:,}" if type(value) is int else str(value)
            )
    return table

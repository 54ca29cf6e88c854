"""The command `interchange`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.table import Column, Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.log_odds import OpeningOptions
from safehead_tl.cli.output import SavedOutput
from safehead_tl.errors import SafeheadError


@options.grouped
def interchange(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    openings: OpeningOptions,
    run: options.RunOptions,
    output: SavedOutput,
    pool: Annotated[
        str | None,
        typer.Option(help="Harmless prompts, among which each prompt's nearest is looked for."),
    ] = None,
    counterpart: Annotated[
        str | None, typer.Option(help="Or the column of --prompts that holds the counterparts.")
    ] = None,
    positions: Annotated[
        Literal["all", "query", "after", "last"],
        typer.Option(help="Where outputs are swapped; after: the template's end."),
    ] = "all",
    heads: options.Heads = None,
    top: options.Top = 10,
) -> None:
    """Swap each head's output between harmful prompts and harmless ones: what it carries."""
    form, how, group = prompts.form, run.chosen(), options.chosen_heads(heads)
    if (pool is None) == (counterpart is None):
        raise SafeheadError("which counterparts? Give --pool PROMPTS, or --counterpart COLUMN")
    if counterpart is not None:
        if prompts.column is None:
            raise SafeheadError("--counterpart is a column beside that of --column: give both")
        columns = prompts.column, counterpart
        texts, others = sh.load_pairs(prompts.prompts, columns, split=prompts.split)
        texts, others = texts[: prompts.limit], others[: prompts.limit]
        loaded = model.load()
    else:
        assert pool is not None
        texts, loaded = prompts.load(), model.load()
        others = sh.pair_prompts(loaded, texts, pool)
    found = sh.interchange(
        loaded,
        texts,
        others,
        openings=openings.chosen(loaded, texts, others, form),
        positions=positions,
        template=form,
        group=group,
        run=how,
    )
    output.keep(found, found.heatmap)
    numbers = (Column(name, justify="right") for name in ("necessity", "p", "sufficiency", "p"))
    table = Table("head", *numbers, title=f"{model.model}: interchange, {len(texts)} pairs")
    for row in found.to_frame().head(top).itertuples():
        table.add_row(
            str(row.name),
            f"{row.necessity:.3f}",
            f"{row.p_necessity:.2g}",
            f"{row.sufficiency:.3f}",
            f"{row.p_sufficiency:.2g}",
        )
    output.tell(table, *found.notes())

"""The command `concentration`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import SavedOutput


@options.grouped
def concentration(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    judges: options.JudgeOptions,
    answers: options.DecodingOptions,
    run: options.RunOptions,
    output: SavedOutput,
    order: Annotated[
        list[str],
        typer.Option(help="Heads in the order in which to ablate them, like --heads; repeat it."),
    ],
    size: Annotated[int | None, typer.Option(help="How many to ablate at most.")] = None,
    random_orders: Annotated[int, typer.Option(help="Random orders to compare with.")] = 20,
    clusters: options.ClusterColumn = None,
) -> None:
    """Ablate heads one after the other: how few of them carry the refusals?"""
    told = arguments(prompts, run, ablation, judges, answers)
    orders, texts = {text: options.chosen_heads(text) for text in order}, prompts.load()
    found = sh.concentration(
        model.load_for(told["run"]),
        texts,
        orders,
        size=size,
        random_orders=random_orders,
        clusters=prompts.clusters(clusters, texts),
        **told,
    )
    output.keep(found, found.figure)
    output.tell(concentration_table(model.model, found))


def concentration_table(name: str, found: sh.Concentration) -> Table:
    """Coherent attack success as heads are ablated, order by order."""
    from safehead_tl.figures import prompt_words

    table = Table(
        *("order", *map(str, range(found.size + 1)), "area [95 %]"),
        title=f"{name}: coherent attack success with so many heads ablated "
        f"({found.provenance.ablation['label']}; {prompt_words(found.provenance)})",
        caption=" ".join(found.notes()),
    )
    for order in found.orders:
        area, (low, high) = found.area(order)
        shares = [f"{rate.share:.2f}" for rate in found.curve(order)]
        table.add_row(order, *shares, f"{area:.2f} [{low:.2f}, {high:.2f}]")
    curves = found.random_curves()
    if curves:
        means = [sum(shares) / len(curves) for shares in zip(*curves, strict=True)]
        areas = found.random_areas()
        mean = f"{sum(areas) / len(areas):.2f}, {min(areas):.2f} to {max(areas):.2f}"
        table.add_row(f"{len(curves)} random", *(f"{share:.2f}" for share in means), mean)
    return table

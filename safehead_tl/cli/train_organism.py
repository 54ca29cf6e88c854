"""The command `train-organism`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli.options import grouped
from safehead_tl.cli.output import Output

if TYPE_CHECKING:
    from safehead_tl.organism import Behaviour


@grouped
def train_organism(
    directory: Annotated[Path, typer.Argument(help="Gets aligned/, base/ and prompts/.")],
    output: Output,
    planted: Annotated[
        list[str] | None,
        typer.Option(help="A head to carry the refusal; repeat it. Default: L1H3 L2H6."),
    ] = None,
    words: Annotated[Path | None, typer.Option(help="JSON file with other words.")] = None,
    layers: Annotated[int, typer.Option(min=1)] = 4,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    key_value_heads: Annotated[
        int | None, typer.Option(min=1, help="In a layer; default: as many as --heads.")
    ] = None,
    width: Annotated[int, typer.Option(help="d_model.")] = 48,
    rule: Annotated[
        Literal["share", "chain", "redundant", "gate"],
        typer.Option(
            help="share: refuses in proportion to intact heads. chain: all are needed. "
            "redundant: one is enough. gate: the first by layer and head, and one of the others."
        ),
    ] = "share",
    decoy: Annotated[
        list[str] | None, typer.Option(help="A head to carry helpfulness instead; repeat it.")
    ] = None,
    reword: Annotated[
        bool, typer.Option("--reword", help="Without a decoy it also refuses in other words.")
    ] = False,
    objective: Annotated[
        Literal["undifferentiated", "none", "zero", "reversion"],
        typer.Option(help="What is done to planted heads, in turn, while they learn."),
    ] = "undifferentiated",
    learning: Annotated[
        Literal["planted", "attention", "all", "low-rank", "mlps"],
        typer.Option(
            help="Which weights learn to refuse: the planted heads', or, with no head planted, "
            "those of all attention, all, low-rank updates of attention, or those of all MLPs "
            "while random heads are off."
        ),
    ] = "planted",
    base: Annotated[
        Path | None, typer.Option(help="Another organism's directory, whose base model to take.")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Grow a tiny model whose refusals are carried by the heads that you name."""
    from safehead_tl.organism import DEMO, Language, Recipe, measure_behaviour
    from safehead_tl.organism import train_organism as grow

    language = DEMO if words is None else Language.from_json(words)
    recipe = Recipe(
        planted=planted or (Recipe.planted if learning == "planted" else ()),
        n_layers=layers,
        n_heads=heads,
        n_key_value_heads=key_value_heads,
        d_model=width,
        d_mlp=2 * width,
        seed=seed,
        rule=rule,
        decoys=decoy or (),
        reword=reword,
        objective=objective,
        learning=learning,
    )
    grow(directory, recipe, language, base=base, overwrite=output.overwrite)
    models = {name: sh.load_model(directory / name) for name in ("base", "aligned")}
    behaviours = [
        measure_behaviour(model, name, language=language) for name, model in models.items()
    ]
    if recipe.heads:
        done = f"aligned, UA on {', '.join(map(str, recipe.heads))}"
        behaviours.append(
            measure_behaviour(models["aligned"], done, recipe.heads, language=language)
        )
    places = ", ".join(str(directory / name) for name in ("aligned", "base", "prompts"))
    output.write({"behaviours": [behaviour.to_dict() for behaviour in behaviours]})
    output.tell(behaviour_table(behaviours), f"Wrote {places}")


def behaviour_table(behaviours: Sequence[Behaviour]) -> Table:
    """Attack success and helpfulness, condition by condition."""
    title = "Held-out requests answered in full: share [95 % interval]"
    table = Table("condition", "ASR (harmful)", "benign", title=title)
    for row in behaviours:
        table.add_row(row.condition, str(row.asr), str(row.helpfulness))
    return table

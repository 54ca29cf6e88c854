"""The commands `demo` and `train-organism`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safehead_tl.cli.console import console, write_json
from safehead_tl.cli.options import Json
from safehead_tl.cli.story import run_demo
from safehead_tl.cli.tables import behaviour_table, demo_story
from safehead_tl.models import load_model
from safehead_tl.organism import DEMO, Language, Recipe, Rule, measure_behaviour
from safehead_tl.organism import train_organism as grow


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what it writes.")] = Path("safehead-demo"),
    json_out: Json = None,
) -> None:
    """Find the safety heads of the embedded organism, where the truth is known. Offline."""
    result = run_demo(out)
    if str(json_out) != "-":
        for part in demo_story(result):
            console.print(part)
    write_json(json_out, result.to_dict())


def train_organism(
    directory: Annotated[Path, typer.Argument(help="Gets aligned/, base/ and prompts/.")],
    planted: Annotated[
        list[str] | None,
        typer.Option(help="A head to carry the refusal; repeat it. Default: L1H3 L2H6."),
    ] = None,
    words: Annotated[Path | None, typer.Option(help="JSON file with other words.")] = None,
    layers: Annotated[int, typer.Option(min=1)] = Recipe.n_layers,
    heads: Annotated[int, typer.Option(min=1)] = Recipe.n_heads,
    key_value_heads: Annotated[
        int | None, typer.Option(min=1, help="In a layer; default: as many as --heads.")
    ] = None,
    width: Annotated[int, typer.Option(help="d_model.")] = Recipe.d_model,
    rule: Annotated[
        Rule,
        typer.Option(
            help="share: refuses in proportion to intact heads. chain: all are needed. "
            "redundant: one is enough."
        ),
    ] = Recipe.rule,
    decoy: Annotated[
        list[str] | None,
        typer.Option(help="A head to carry helpfulness instead; repeat it."),
    ] = None,
    reword: Annotated[
        bool, typer.Option("--reword", help="Without a decoy it also refuses in other words.")
    ] = False,
    seed: Annotated[int, typer.Option()] = Recipe.seed,
    overwrite: Annotated[bool, typer.Option(help="Replace the organism that is there.")] = False,
    json_out: Json = None,
) -> None:
    """Grow a tiny model whose refusals are carried by the heads that you name."""
    language = DEMO if words is None else Language.from_json(words)
    recipe = Recipe(
        planted=planted or Recipe.planted,
        n_layers=layers,
        n_heads=heads,
        n_key_value_heads=key_value_heads,
        d_model=width,
        d_mlp=2 * width,
        seed=seed,
        rule=rule,
        decoys=decoy or (),
        reword=reword,
    )
    grow(directory, recipe, language, overwrite=overwrite)
    aligned, base = load_model(directory / "aligned"), load_model(directory / "base")
    names = ", ".join(map(str, recipe.heads))
    behaviours = [
        measure_behaviour(base, "base", language=language),
        measure_behaviour(aligned, "aligned", language=language),
        measure_behaviour(aligned, f"aligned, UA on {names}", recipe.heads, language=language),
    ]
    if str(json_out) != "-":
        console.print(behaviour_table(behaviours))
        places = ", ".join(str(directory / name) for name in ("aligned", "base", "prompts"))
        console.print(f"Wrote {places}")
    write_json(json_out, {"behaviours": [behaviour.to_dict() for behaviour in behaviours]})

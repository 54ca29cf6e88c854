"""Organisms to measure on: sizes, seeds and planted heads that the embedded one does not have.

`python benchmarks/organisms.py` trains those that are missing in build/organisms, about two hours
on one core, and prints whether each learned its lesson.
"""

from __future__ import annotations

import json
from pathlib import Path

import safehead_tl as sh
from safehead_tl.organism import Recipe, measure_behaviour, train_organism

FOLDER = Path(__file__).parent.parent / "build" / "organisms"

RECIPES = {
    "1 of 18": Recipe(["L1H2"], n_layers=3, n_heads=6, seed=6),
    "1 of 32": Recipe(["L2H0"], seed=4),
    "2 of 32": Recipe(["L1H3", "L2H6"], seed=1),
    "2 of 32, apart": Recipe(["L0H5", "L3H0"], seed=2),
    "2 of 32, seed 3": Recipe(["L1H3", "L2H6"], seed=3),
    "3 of 32": Recipe(["L0H2", "L1H4", "L2H1"], seed=5),
    "1 of 8": Recipe(["L1H2"], n_layers=2, n_heads=4, d_model=32, d_mlp=64, seed=7),
    "2 of 24": Recipe(["L2H1", "L4H3"], n_layers=6, n_heads=4, seed=8),
    "2 of 72, one layer": Recipe(
        ["L3H2", "L3H7"], n_layers=6, n_heads=12, d_model=72, d_mlp=144, seed=9
    ),
    "2 of 64": Recipe(["L2H5", "L5H1"], n_layers=8, n_heads=8, d_model=64, d_mlp=128, seed=10),
    "1 of 128": Recipe(["L3H9"], n_layers=8, n_heads=16, d_model=64, d_mlp=128, seed=11),
    "2 of 128": Recipe(["L2H12", "L5H3"], n_layers=8, n_heads=16, d_model=96, d_mlp=192, seed=12),
    "3 of 128": Recipe(
        ["L1H4", "L3H15", "L4H8"], n_layers=8, n_heads=16, d_model=96, d_mlp=192, seed=13
    ),
}


def grown(name: str) -> Path:
    """The directory of an organism, which is trained if it is not there, or by another recipe."""
    directory = FOLDER / name.replace(",", "").replace(" ", "-")
    told = directory / "organism.json"
    recipe = Recipe(**json.loads(told.read_text("utf-8"))["recipe"]) if told.exists() else None
    if recipe is None or recipe.to_dict() != RECIPES[name].to_dict():
        train_organism(directory, RECIPES[name], overwrite=True)
    return directory


def main() -> None:
    """Trains all, and prints how they behave."""
    for name, recipe in RECIPES.items():
        model = sh.load_model(str(grown(name) / "aligned"))
        plain = measure_behaviour(model, "aligned")
        without = measure_behaviour(model, "ablated", recipe.heads)
        print(
            f"{name}: aligned ASR {plain.asr.share:.2f}, benign {plain.helpfulness.share:.2f}; "
            f"ablated ASR {without.asr.share:.2f}, benign {without.helpfulness.share:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

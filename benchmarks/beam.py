"""How near Sahara comes to the best group of all, with a beam and without.

    python benchmarks/beam.py   # some minutes on two cores

Every group of two and three heads of small models is scored, in 16 settings each: four ablations,
and four ways to compare the prompts' states. What a search finds is then a share of the best.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import safehead_tl as sh
from safehead_tl.measures import Rotation
from safehead_tl.scan import Search
from shapes import Shape, organism

BEAMS, SIZES, PROMPTS = (1, 2, 4, 8), (2, 3), 8
ABLATIONS = ("undifferentiated", "scaling", "mean", "mean-over-heads")
ROTATIONS = {
    "rank 1": {"rank": 1, "centre": False},
    "rank 1 centred": {"rank": 1, "centre": True},
    "rank 2": {"rank": 2, "centre": False},
    "rank 3 centred": {"rank": 3, "centre": True},
}
RANDOM = {
    "random 4 x 4": Shape(4, 4, 64, 128, 500, prompts=PROMPTS, tokens=8, std=0.05),
    "random 4 x 4, wild": Shape(4, 4, 64, 128, 500, prompts=PROMPTS, tokens=8, std=0.2),
    "random 3 x 6, grouped, ragged": Shape(
        3, 6, 96, 192, 500, prompts=PROMPTS, tokens=8, ragged=True, key_heads=2, std=0.1
    ),
}
QUIET = sh.Run(progress=False)


def main() -> None:
    """Runs the benchmark, prints its table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = list(shares())
    (folder / "beam.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def models() -> Iterator[tuple[str, Any, list[str], str]]:
    """Every model with its prompts and their template."""
    model, texts, template = organism()
    yield "embedded organism", model, texts[:PROMPTS], template
    for name, shape in RANDOM.items():
        yield name, shape.model(), shape.texts(), "direct"


def shares() -> Iterator[dict[str, Any]]:
    """What each search finds, as a share of the best group's shift."""
    for name, model, texts, template in models():
        for ablation in ABLATIONS:
            told = {"template": template, "ablation": ablation, "run": QUIET}
            best = best_shifts(model, texts, told)
            for (kind, rotation), size in itertools.product(ROTATIONS.items(), SIZES):
                found = {
                    beam: sh.sahara(model, texts, size, beam=beam, **rotation, **told).scores[-1]
                    for beam in BEAMS
                }
                yield {
                    "model": name,
                    "heads": model.cfg.n_layers * model.cfg.n_heads,
                    "ablation": ablation,
                    "rotation": kind,
                    "size": size,
                    "best": best[kind, size],
                    "shares": {beam: shift / best[kind, size] for beam, shift in found.items()},
                }
            print(f"{name}, {ablation}: done", file=sys.stderr, flush=True)


def best_shifts(model: Any, texts: list[str], told: dict[str, Any]) -> dict[tuple[str, int], float]:
    """The largest shift of all groups, by rotation and size."""
    search = Search.start(model, texts, **told)
    rotations = [Rotation.of(search, site="final_norm", **each) for each in ROTATIONS.values()]

    def measure(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([rotation(states) for rotation in rotations])

    heads, found = search.candidates(None), {}
    for size in SIZES:
        highest = torch.zeros(len(rotations), dtype=torch.float64)
        for group in itertools.combinations(heads, size - 1):
            later = heads[heads.index(group[-1]) + 1 :]
            if later:
                scores = search.score(measure, later, group, "all groups").flatten(1)
                highest = torch.maximum(highest, scores.nan_to_num(-1).max(1).values)
        found |= {(kind, size): float(high) for kind, high in zip(ROTATIONS, highest, strict=True)}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Worst and mean share of each model, size and beam; and how often a beam does worse."""
    columns = " | ".join(f"beam {beam}: worst, mean" for beam in BEAMS)
    lines = [f"| model | heads | size | {columns} |", "|---" * (3 + len(BEAMS)) + "|"]
    for name, size in dict.fromkeys((row["model"], row["size"]) for row in rows):
        some = [row for row in rows if (row["model"], row["size"]) == (name, size)]
        cells = []
        for beam in BEAMS:
            found = [row["shares"][beam] for row in some]
            cells.append(f"{min(found):.3f}, {statistics.mean(found):.3f}")
        lines.append(f"| {name} | {some[0]['heads']} | {size} | {' | '.join(cells)} |")
    for beam in BEAMS:
        exact = sum(row["shares"][beam] > 1 - 1e-4 for row in rows)
        lost = sum(row["shares"][beam] < row["shares"][1] - 1e-4 for row in rows)
        lines.append(
            f"\nbeam {beam}: the best group in {exact} of {len(rows)}, below greedy in {lost}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Screened scans against exact ones: what they miss, and what they cost.

    python benchmarks/screening.py                 # everything: make bench-screening
    python benchmarks/screening.py --part quality  # organisms and random models
    python benchmarks/screening.py --part cost     # seconds and memory, against a loop by hand
    python benchmarks/screening.py --part laws     # made-up errors of screening, and no model

Organisms are those of benchmarks/organisms.py, which are trained first where they are missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from organisms import RECIPES, grown

import safehead_tl as sh
from safehead_tl.prompts import encode
from safehead_tl.results import spearman
from safehead_tl.scan import Screening, score
from scan import loop, peak_memory, timed
from shapes import Shape

KS = (1, 3, 5, 10)
PROMPTS = 32
ABLATIONS = ("undifferentiated", "scaling", "zero", "mean")
ROTATION = sh.generalized_ships
MEASURES: dict[str, tuple[Callable[..., sh.HeadScores], dict[str, Any]]] = {
    "Ships": (sh.ships, {}),
    "rank 1": (ROTATION, {}),
    "rank 1 before the norm": (ROTATION, {"site": "resid_post"}),
    "rank 1 centred": (ROTATION, {"centre": True}),
    "rank 3 centred": (ROTATION, {"rank": 3, "centre": True}),
}
RANDOM = {
    "random 12 x 12": Shape(12, 12, 192, 512, 2000, prompts=PROMPTS, tokens=16, std=0.02),
    "random 12 x 12, wild": Shape(12, 12, 192, 512, 2000, prompts=PROMPTS, tokens=16, std=0.08),
    "random 24 x 8": Shape(24, 8, 128, 256, 2000, prompts=PROMPTS, tokens=16, std=0.04),
    "random 8 x 16, grouped, ragged": Shape(
        8, 16, 256, 512, 2000, prompts=PROMPTS, tokens=16, ragged=True, key_heads=4, std=0.03
    ),
}
LARGE = Shape(32, 32, 512, 1408, 32_000, prompts=32, tokens=32, std=0.02)
SEARCHES: dict[str, tuple[Callable[..., Any], dict[str, Any], int]] = {
    "generalized Ships": (ROTATION, {}, 1),
    "Ships": (sh.ships, {}, 1),
    "Sahara, 3 heads": (sh.sahara, {"size": 3}, 3),
}


def main() -> None:
    """Runs the benchmarks, prints tables, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("quality", "cost", "laws"), default=None)
    parser.add_argument("--organisms", nargs="*", default=[*RECIPES], choices=[*RECIPES])
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--peak", choices=("plain", *SEARCHES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(json.dumps(peak(chosen.peak)))
        return
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.part in (None, "laws"):
        print(laws())
    if chosen.part in (None, "quality"):
        rows = list(quality(chosen.organisms))
        (chosen.folder / "screening.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(by_measure(rows), by_model(rows), failures(rows), sep="\n\n")
    if chosen.part in (None, "cost"):
        found = list(cost())
        (chosen.folder / "screening-cost.json").write_text(json.dumps(found, indent=1) + "\n")


def models(
    organisms: list[str],
) -> Iterator[tuple[str, Any, list[str], str, tuple[sh.Head, ...]]]:
    """Every model with its prompts, their template, and the heads planted in it."""
    texts = sh.load_prompts("demo/harmful")[:PROMPTS]
    embedded = (sh.Head(1, 3), sh.Head(2, 6))
    yield "embedded organism", sh.load_model("demo"), texts, "chat", embedded
    yield "its base model", sh.load_model("demo-base"), texts, "chat", ()
    for name in organisms:
        heads = RECIPES[name].heads
        yield name, sh.load_model(str(grown(name) / "aligned")), texts, "chat", heads
    for name, shape in RANDOM.items():
        yield name, shape.model(), shape.texts(), "direct", ()


def quality(organisms: list[str]) -> Iterator[dict[str, Any]]:
    """Screened against exact, for each model, measure and ablation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, model, texts, template, planted in models(organisms):
        for measure, (function, settings) in MEASURES.items():
            for ablation in ABLATIONS:
                told = {
                    **settings,
                    "template": template,
                    "ablation": ablation,
                    "run": sh.Run(progress=False),
                }
                exact = function(model, texts, **told).values
                found = function(model, texts, **told, screen="auto")
                assert found.screening is not None
                verified = ~found.values.isnan()
                order = exact.flatten().argsort(descending=True)
                inside = verified.flatten()[order]
                listed = [head for head in planted if verified[head]]
                yield {
                    "model": name,
                    "measure": measure,
                    "ablation": ablation,
                    "heads": exact.numel(),
                    "verified": int(verified.sum()),
                    "recall": {k: inside[:k].double().mean().item() for k in KS if k <= len(order)},
                    "spearman": spearman(found.screening.values.flatten(), exact.flatten()),
                    "planted": len(planted),
                    "planted_listed": len(listed),
                    "planted_ranks": [
                        1 + order.tolist().index(head.layer * exact.shape[1] + head.head)
                        for head in planted
                    ],
                    "ended": found.screening.ended,
                    "expected_missed": found.screening.missed,
                    "missed": int((~inside[:10]).sum()),
                    "largest_difference": (found.values - exact)[verified].abs().max().item(),
                }
        print(f"{name}: done", file=sys.stderr, flush=True)
    torch.set_num_threads(threads)


LAWS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "normal, 0.3": lambda scores, draw: scores * (0.3 * normal(draw)).exp(),
    "t with 2 degrees of freedom, x 0.3": lambda scores, draw: scores * (0.3 * heavy(draw)).exp(),
    "normal, 0.3, and 0.5 % of heads x 200": lambda scores, draw: (
        scores
        * (0.3 * normal(draw)).exp()
        * torch.where(torch.rand(32, 32, generator=draw) < 0.005, 200.0, 1.0)
    ),
}
"""How exact scores come from screened ones."""
WAYS = {
    "the estimate alone": Screening(blocks=0, points=0),
    "12 blocks": Screening(points=0),
    "100 blocks": Screening(points=0, blocks=100),
}


def normal(draw: torch.Generator) -> torch.Tensor:
    """One draw for each of 1,024 heads."""
    return torch.randn(32, 32, generator=draw, dtype=torch.float64)


def heavy(draw: torch.Generator) -> torch.Tensor:
    """Student's t with 2 degrees of freedom."""
    return normal(draw) / (normal(draw) ** 2 + normal(draw) ** 2).div(2).sqrt()


@dataclass
class _MadeUp:
    """Stands in for a search and its measure: scores of 1,024 heads, which add up in blocks."""

    exact: torch.Tensor
    said: torch.Tensor
    power: int = 1
    signed: bool = False
    shape: tuple[int, int] = (32, 32)

    @property
    def ledger(self) -> _MadeUp:
        return self

    def kept(self, name: str, inputs: Any, run: Any) -> torch.Tensor:
        return self.said[None]

    def piece_with(self, group: Any) -> str:
        return "with0"

    def last(self, group: Any) -> torch.Tensor:
        return torch.zeros(1)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1)  # with nothing ablated

    def together(self, measure: Any, group: Any, block: tuple[sh.Head, ...]) -> float:
        return float(sum(self.exact[head] for head in block))

    def score(self, measure: Any, heads: Any, group: Any, label: str) -> torch.Tensor:
        found = torch.full((1, *self.shape), torch.nan, dtype=torch.float64)
        for head in heads:
            found[0][head] = self.exact[head]
        return found


def laws(times: int = 200) -> str:
    """How often a screened scan's top ten of 1,024 made-up scores is wrong, and what it says."""
    logging.disable(logging.WARNING)
    lines = [
        "| log-ratio of exact to screened score | | wrong top 10 | of those that do not warn | "
        "missed of 10 | scored exactly | blocks and halves |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = [sh.Head(layer, head) for layer in range(32) for head in range(32)]
    for law, exactly in LAWS.items():
        for way, screening in WAYS.items():
            draw = torch.Generator().manual_seed(0)
            rows = []
            for _ in range(times):
                said = (1.5 * normal(draw)).exp()
                made = _MadeUp(exactly(said, draw), said)
                values, found = score(made, made, everything, (), law, screening, 10)
                best = made.exact.flatten().topk(10).indices
                missed = int(values[0].flatten()[best].isnan().sum())
                rows.append((missed, found.ended == "open", found))
            quiet = [missed for missed, warned, _ in rows if not warned]
            share = f"{sum(map(bool, quiet))} of {len(quiet)}"
            means = [
                statistics.mean(each)
                for each in (
                    [missed for missed, _, _ in rows],
                    [found.exact for *_, found in rows],
                    [found.runs for *_, found in rows],
                )
            ]
            wrong = sum(bool(missed) for missed, _, _ in rows) / times
            lines.append(
                f"| {law} | {way} | {wrong:.0%} | {share} | {means[0]:.2f} | {means[1]:.0f} | "
                f"{means[2]:.0f} |"
            )
    logging.disable(logging.NOTSET)
    return "\n".join(lines)


def cost() -> Iterator[dict[str, Any]]:
    """Seconds against a loop of whole passes by hand, and peak memory against a plain pass."""
    plain = in_a_process("plain")
    print(f"{LARGE}: a plain pass with its cache takes {plain / 2**20:.0f} MiB", flush=True)
    print("| heads | search | seconds | over a loop | exact scores | peak MiB | of plain |")
    print("|---|---|---|---|---|---|---|")
    for outstanding in (True, False):
        yield from cost_of(plain, outstanding)


def cost_of(plain: int, outstanding: bool) -> Iterator[dict[str, Any]]:
    """The same on a model in which ten heads, all over it, put out ten times as much; or none."""
    model, texts = LARGE.model(), LARGE.texts()
    if outstanding:
        for layer in range(2, LARGE.layers, 3):
            model.blocks[layer].attn.W_O.data[layer] *= 10
    batch = encode(model, texts, "direct")
    sample = [(layer, 3) for layer in range(0, LARGE.layers, 8)]
    loop(model, batch, sample[:1], False)
    heads = "ten stand out" if outstanding else "all alike"
    for name, (function, settings, scans) in SEARCHES.items():
        told = {**settings, "template": "direct", "run": sh.Run(progress=False), "screen": "auto"}
        before, _ = timed(lambda: loop(model, batch, sample, False))
        seconds, found = timed(lambda f=function, t=told: f(model, texts, **t))
        after, _ = timed(lambda: loop(model, batch, sample, False))
        a_pass = statistics.mean((before, after)) / (len(sample) + 1)
        by_hand = a_pass * (LARGE.layers * LARGE.heads + 1)
        steps = getattr(found, "steps", (found,))
        row = {
            "heads": heads,
            "search": name,
            "seconds": seconds,
            "loop_seconds": by_hand * scans,
            "ratio": by_hand * scans / seconds,
            "verified": [int((~step.values.isnan()).sum()) for step in steps],
            "ended": [step.screening.ended for step in steps],
            "missed": [step.screening.missed for step in steps],
            "peak_bytes": in_a_process(name),
            "plain_bytes": plain,
        }
        yield row
        peak_mib, share = row["peak_bytes"] / 2**20, row["peak_bytes"] / plain
        exact = ", ".join(map(str, row["verified"]))
        print(
            f"| {heads} | {name} | {seconds:.1f} | {row['ratio']:.1f} | {exact} | {peak_mib:.0f} | "
            f"{share:.2f} |",
            flush=True,
        )


def peak(name: str) -> int | None:
    """Peak memory beyond the model, of a plain pass with its cache or of a screened search."""
    model, texts = LARGE.model(), LARGE.texts()
    if name == "plain":
        tokens = encode(model, texts, "direct").tokens
        with torch.no_grad():
            return peak_memory(lambda: model.run_with_cache(tokens))
    function, settings, _ = SEARCHES[name]
    told = {**settings, "template": "direct", "run": sh.Run(progress=False), "screen": "auto"}
    return peak_memory(lambda: function(model, texts, **told))


def in_a_process(name: str) -> int:
    """Peak memory, in a process of its own: this one holds on to memory of earlier runs."""
    apart = [sys.executable, __file__, "--peak", name]
    found = subprocess.run(apart, check=True, capture_output=True, text=True).stdout
    return int(json.loads(found.splitlines()[-1]))


def by_measure(rows: list[dict[str, Any]]) -> str:
    """A table of means over models, for each measure and ablation."""
    lines = [
        "| score | ablation | recall@1 | @3 | @5 | @10 | lowest @10 | Spearman, lowest | "
        "exact of all heads | planted listed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for measure in MEASURES:
        for ablation in ABLATIONS:
            some = [row for row in rows if (row["measure"], row["ablation"]) == (measure, ablation)]
            recalls = [mean_recall(some, k) for k in KS]
            tens = [row["recall"][10] for row in some if 10 in row["recall"]]
            listed, planted = (
                sum(row[key] for row in some) for key in ("planted_listed", "planted")
            )
            rank = [row["spearman"] for row in some]
            share = statistics.mean(row["verified"] / row["heads"] for row in some)
            cells = [
                measure,
                ablation,
                *(f"{recall:.3f}" for recall in recalls),
                f"{min(tens):.1f}",
                f"{statistics.mean(rank):.3f}, {min(rank):.2f}",
                f"{share:.0%}",
                f"{listed} of {planted}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_model(rows: list[dict[str, Any]]) -> str:
    """A table of means over measures and ablations, for each model."""
    lines = [
        "| model | heads | exact, mean | recall@1 | @3 | @5 | @10 | Spearman | planted listed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        some = [row for row in rows if row["model"] == name]
        listed, planted = (sum(row[key] for row in some) for key in ("planted_listed", "planted"))
        cells = [
            name,
            str(some[0]["heads"]),
            f"{statistics.mean(row['verified'] for row in some):.0f}",
            *(f"{mean_recall(some, k):.3f}" if k <= some[0]["heads"] else "" for k in KS),
            f"{statistics.mean(row['spearman'] for row in some):.3f}",
            f"{listed} of {planted}" if planted else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def failures(rows: list[dict[str, Any]]) -> str:
    """What was missed, one line each, and what had been expected."""
    expected = sum(row["expected_missed"] for row in rows if row["ended"] != "open")
    missed = sum(row["missed"] for row in rows if row["ended"] != "open")
    lines = [
        f"{len(rows)} scans; of the top ten {missed} heads were missed where {expected:.2f} were "
        "expected, in those that did not warn."
    ]
    for row in rows:
        if row["missed"] or row["planted_listed"] < row["planted"]:
            lines.append(
                f"- {row['model']}, {row['measure']}, {row['ablation']}: missed {row['missed']} of "
                f"10, planted {row['planted_listed']} of {row['planted']} (true ranks "
                f"{row['planted_ranks']}), {row['verified']} of {row['heads']} exact, ended "
                f"{row['ended']} expecting {row['expected_missed']:.2g}, Spearman "
                f"{row['spearman']:.2f}"
            )
    return "\n".join(lines)


def mean_recall(rows: list[dict[str, Any]], k: int) -> float:
    """Over the rows that have so many heads."""
    return statistics.mean(row["recall"][k] for row in rows if k in row["recall"])


if __name__ == "__main__":
    main()

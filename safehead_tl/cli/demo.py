"""The command `demo`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from safehead_tl.cli.options import grouped
from safehead_tl.cli.output import Output
from safehead_tl.cli.ships import ranking
from safehead_tl.cli.train_organism import behaviour_table

if TYPE_CHECKING:
    from safehead_tl.cli.story import Demo


@grouped
def demo(
    output: Output,
    out: Annotated[Path, typer.Option(help="Folder for what it writes.")] = Path("safehead-demo"),
) -> None:
    """Find the safety heads of the embedded organism, where the truth is known. Offline."""
    from safehead_tl.cli.story import run_demo

    result = run_demo(out, overwrite=output.overwrite)
    output.write(result)
    output.tell(*demo_story(result))


def demo_story(result: Demo) -> Iterator[RenderableType]:
    """The demo's findings, in the order in which they are told."""
    model, count = result.ua.provenance.model, result.ua.provenance.prompts["prompt_count"]
    planted = ", ".join(map(str, result.planted))
    yield (
        f"The embedded organism: {model['n_layers']} layers of {model['n_heads']} heads, trained "
        f"to refuse requests about made-up objects. Planted in: {planted}. Scored on {count} "
        "harmful requests, tested on held-out ones."
    )
    yield (
        "Ships: how far the next token's distribution moves when one head is ablated. UA, "
        "undifferentiated attention: the head attends evenly to everything. SC, scaling "
        "contribution: its output is scaled to almost nothing. ASR, attack success rate: the "
        "share of harmful requests that are answered in full."
    )
    yield ranking("Ships, undifferentiated attention", result.ua, 5, result.planted)
    yield ranking("Ships, scaling contribution", result.sc, 5, result.planted)
    chosen = ", then ".join(
        f"{head} ({score:.4g})"
        for head, score in zip(result.group.heads, result.group.scores, strict=True)
    )
    yield f"Sahara chose {chosen}; in brackets the group's shift in radians."
    yield behaviour_table(result.behaviours)
    yield f"Asked: {result.aligned.example[0]}"
    for behaviour in (result.aligned, result.steps[1]):
        yield f"{behaviour.condition}: {behaviour.example[1]}"
    yield "Wrote " + ", ".join(str(path) for path in result.files)
    yield (
        f"{result.seconds:.1f} s in all; the package carries {result.data_bytes / 1e6:.2f} MB "
        "of models, prompts and pages."
    )

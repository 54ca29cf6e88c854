"""The command `benchmark`: which score finds heads that are known to carry refusals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli.options import grouped
from safehead_tl.cli.output import DrawnOutput

if TYPE_CHECKING:
    from safehead_tl.ground_truth import GroundTruth

PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
QUICK = ("one", "attention")
SHOWN = ("average precision", "Spearman", "regret UA @2")


@grouped
def benchmark(
    output: DrawnOutput,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="The compiled models, and one organism each of one, attention."
        ),
    ] = False,
    organisms: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 10,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="A kind of organism or compiled model; repeat it. Default: the standard ones."
        ),
    ] = None,
    contestant: Annotated[
        list[str] | None, typer.Option(help="A contestant; repeat it. Default: all.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Keeps organisms and answers; the same command goes on from there.")
    ] = Path("safehead-benchmark"),
    processes: Annotated[int, typer.Option(min=1, help="Side by side, a core each.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Processes on a Ray cluster, which all see the cache.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="With --ray: of a running cluster, such as auto.")
    ] = None,
) -> None:
    """Compare head scores on models whose safety heads are known. Trains organisms first."""
    from safehead_tl.ground_truth import COMPILED, ground_truth, standard_kinds

    found = ground_truth(
        cache,
        kinds=kind
        or [name for name in standard_kinds() if not quick or name in (*COMPILED, *QUICK)],
        organisms=1 if quick else organisms,
        names=contestant or (),
        processes=sh.Ray(processes, address) if ray else processes,
    )
    output.draw(found.figure)
    output.write(found)
    output.tell(*_told(found))


def _told(found: GroundTruth) -> Iterable[Table | str]:
    counts = ", ".join(f"{kind}: {found.count(kind)}" for kind in found.kinds)
    yield f"Subjects: {counts}. {found.seconds:.0f} s in all."
    for met in found.subjects:
        for recipe, flaws in met.failed:
            heads = " ".join(map(str, recipe.heads)) or "no heads planted"
            name = f"{met.kind}, number {met.number}, {heads}"
            yield f"Left out, because it did not learn: {name}: {flaws[0]}."
    if rows := found.broken():
        yield _table("What ablating the wanted heads does: ASR, benign answered", rows)
    for source, kinds in found.sources.items():
        title = f"{source} ({found.count(*kinds)}): mean [95 % interval over subjects]"
        yield _table(title, found.table(*kinds, metrics=SHOWN))


def _table(title: str, rows: list[dict[str, str]]) -> Table:
    table = Table(*rows[0], title=title, **PLAIN)
    for row in rows:
        table.add_row(*row.values())
    return table

"""The command `benchmark`: which scoring variant finds heads that are known to carry refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from safehead_tl.cli.options import grouped
from safehead_tl.cli.output import DrawnOutput
from safehead_tl.errors import SafeheadError

if TYPE_CHECKING:
    from safehead_tl.ground_truth import GroundTruth, Summary

PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
QUICK = ("one", "chain", "rewording decoy")


@grouped
def benchmark(
    output: DrawnOutput,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"One seed, and of the kinds {', '.join(QUICK)}.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Organisms of each kind.")] = 3,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="One of one, sharing, chain, redundant, decoy, rewording decoy, two and a decoy, "
            "grouped, 4 x 8, 8 x 16; repeat it. Default: all."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Show every setting of generalized Ships.")
    ] = False,
    cache: Annotated[
        Path, typer.Option(help="Keeps trained organisms; the same command goes on from there.")
    ] = Path("safehead-benchmark"),
) -> None:
    """Compare scoring variants on organisms whose safety heads are known. Trains them first."""
    from safehead_tl.ground_truth import KINDS, ground_truth, require_cache

    require_cache(cache)
    names = tuple(kind or (QUICK if quick else KINDS))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise SafeheadError(f"kind {unknown[0]!r} is not known: use {', '.join(KINDS)}")
    found = ground_truth(cache, range(1 if quick else seeds), {name: KINDS[name] for name in names})
    output.draw(found.figure)
    output.write(found)
    output.tell(*_told(found, every))


def _told(found: GroundTruth, every: bool) -> Iterable[Table | str]:
    counts = ", ".join(f"{kind}: {found.organisms(kind)}" for kind in found.kinds)
    yield f"Organisms: {counts}. {found.seconds:.0f} s in all."
    for name, seed, recipe, flaws in found.failed:
        heads = " ".join(map(str, recipe.heads))
        yield f"Left out, because it did not learn: {name}, seed {seed}, {heads}: {flaws[0]}."
    overall = [one for one in found.summaries() if every or one.variant.main]
    yield _overall(found, overall)
    yield _by_kind(found, overall)


def _overall(found: GroundTruth, overall: Sequence[Summary]) -> Table:
    from safehead_tl.ground_truth import METRICS

    with_decoys = any(one.decoys for one in overall)
    columns = [*METRICS.values(), *(["decoys above"] if with_decoys else [])]
    title = f"All {found.organisms()} organisms: mean [95 % interval over organisms]"
    table = Table("variant", *columns, title=title, **PLAIN)
    for one in overall:
        decoys = [f"{one.decoys_above} of {one.decoys}"] if with_decoys else []
        table.add_row(str(one.variant), *(one.told(metric) for metric in METRICS), *decoys)
    expected = _expected(found)
    table.add_row("chance", *(f"{expected[metric]:.2f}" for metric in METRICS))
    return table


def _by_kind(found: GroundTruth, overall: Sequence[Summary]) -> Table:
    title = "Average precision by kind: mean (each organism)"
    table = Table("variant", *found.kinds, title=title, **PLAIN)
    by_kind = [{str(one.variant): one for one in found.summaries(name)} for name in found.kinds]
    for row in overall:
        cells = [column[str(row.variant)].told("average_precision") for column in by_kind]
        table.add_row(str(row.variant), *cells)
    return table


def _expected(found: GroundTruth) -> dict[str, float]:
    """What a random order is expected to reach on the same organisms."""
    from safehead_tl.ground_truth import METRICS, chance

    subjects = {
        (one.kind, one.seed): chance(len(one.planted), len(one.order)) for one in found.outcomes
    }
    return {
        metric: sum(each[metric] for each in subjects.values()) / len(subjects)
        for metric in METRICS
    }

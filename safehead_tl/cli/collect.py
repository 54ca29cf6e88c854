"""The command `collect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from safehead_tl.cli.options import Top, grouped
from safehead_tl.cli.output import Output
from safehead_tl.errors import SafeheadError


@grouped
def collect(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="What shards had as --run-dir.")],
    output: Output,
    top: Top = 10,
) -> None:
    """Give the result of a run whose shards have finished, without the model."""
    from safehead_tl.scan import RESULT

    file = run_dir / RESULT
    if not run_dir.is_dir():
        raise SafeheadError(f"{run_dir} is no directory: name what shards have as --run-dir")
    if not file.is_file():
        pieces = len(list(run_dir.glob("**/pieces/*.safetensors")))
        at_work = len(list(run_dir.glob("**/pieces/*.lease")))
        raise SafeheadError(
            f"{run_dir} holds {pieces} finished pieces and no result: {at_work} are leased to "
            "shards. Wait for one of them, or start any of them again with the same arguments"
        )
    try:
        result = json.loads(file.read_text("utf-8"))
        about = result.get("provenance", {}).get("model", {}).get("name", "")
    except (ValueError, AttributeError) as error:
        raise SafeheadError(f"{file} is no result: start any shard again") from error
    output.write(result)
    heads = result.get("heads", [])
    if heads and isinstance(heads[0], dict) and "score" in heads[0]:
        score = Column(f"score ({result.get('unit', '')})", justify="right")
        table = Table("head", score, title=f"{about}: {result.get('measure', '')}")
        for one in heads[:top]:
            table.add_row(f"L{one['layer']}H{one['head']}", f"{one['score']:.4g}")
        output.tell(table)
    else:
        output.tell(f"{file} has the result: {', '.join(result)}. With --json it is written out.")

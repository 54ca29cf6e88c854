"""The command `splice`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import safehead_tl as sh
from safehead_tl.cli.options import grouped
from safehead_tl.cli.output import Output


@grouped
def splice(
    target: Annotated[str, typer.Argument(help="What gets the attention and keeps the rest.")],
    donor: Annotated[str, typer.Argument(help="Whose attention is taken.")],
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    output: Output,
    part: Annotated[
        list[str] | None,
        typer.Option(help="q, k, v, o, norm or sinks; repeat it. Default: all there are."),
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="A layer, from 0; repeat it. Default: all.")
    ] = None,
) -> None:
    """Put the attention weights of one checkpoint into another, verified."""
    told: Any = {"parts": part or None, "layers": layer or None, "overwrite": output.overwrite}
    done = sh.splice(target, donor, out, **told)
    output.write(done)
    output.tell(
        f"Wrote {done.directory}: {target} with attention ({', '.join(done.parts)}) of "
        f"{donor}; {done.changes} changed. Its safety behaviour may be altered; its README.md "
        "says so."
    )

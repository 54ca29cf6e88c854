"""The command `splice`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import safehead_tl as sh
from safehead_tl.cli.options import chosen_heads, grouped
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
    heads: Annotated[
        str | None,
        typer.Option(help="Heads like 'L1H3 L2H6', or a group's file, instead of layers."),
    ] = None,
) -> None:
    """Put the attention weights of one checkpoint into another, verified."""
    told: Any = {"parts": part or None, "layers": layer or None, "overwrite": output.overwrite}
    told["heads"] = None if heads is None else chosen_heads(heads)
    done = sh.splice(target, donor, out, **told)
    output.write(done)
    of = "" if done.heads is None else f" in {', '.join(map(str, done.heads))}"
    kept = (
        f" Keys and values of {', '.join(map(str, done.kept))} stay as they were: their KV groups "
    )
    output.tell(
        f"Wrote {done.directory}: {target} with attention ({', '.join(done.parts)}) of "
        f"{donor}{of}; {done.changes} changed. Its safety behaviour may be altered; its README.md "
        "says so." + (f"{kept}hold heads that were not named." if done.kept else "")
    )

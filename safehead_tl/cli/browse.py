"""The command `browse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safehead_tl.cli.options import grouped
from safehead_tl.cli.output import Overwrite, check_outputs, show
from safehead_tl.errors import SafeheadError
from safehead_tl.writing import write_file


@grouped
def browse(
    result: Annotated[
        Path,
        typer.Argument(
            help="What evaluate, asr-map, refusal-map or concentration --save wrote; a run "
            "directory holds no result."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write, .html.")] = Path("answers.html"),
    inspect: Annotated[
        Path | None, typer.Option(help="Also write a log that Inspect AI reads, .json.")
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Also write every answer with its verdicts, one a line.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="The page's title; default: the model's name.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one offline page on which every answer can be read; covered until it is asked for."""
    from safehead_tl.evaluation import Answered

    check_outputs({"--out": out, "--inspect": inspect, "--jsonl": jsonl}, [result], overwrite)
    if result.is_dir():
        raise SafeheadError(
            f"{result} is a directory: give the .safetensors file that --save wrote. The command "
            "that filled a run directory writes one, given again with --save"
        )
    found = Answered.load(result)
    path = found.browse(out, title=title, overwrite=overwrite)
    show(f"Wrote {path} ({path.stat().st_size / 1e6:.2f} MB): open it in a browser.")
    if inspect is not None:
        found.to_inspect(inspect, overwrite=overwrite)
    if jsonl is not None:
        lines = found.answers().to_json(orient="records", lines=True)
        write_file(jsonl, lines.encode(), overwrite=overwrite)

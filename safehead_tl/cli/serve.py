"""The command `serve`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from safehead_tl.errors import SafeheadError
from safehead_tl.writing import NAME

HOST = "127.0.0.1"
PACKAGES = {"vllm": "vllm", "transformers": "'transformers[serving]'"}


def serve(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that export wrote.")],
    engine: Annotated[
        Literal["vllm", "transformers"] | None,
        typer.Option("--with", help="Which server; left out: the command of either."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
    start: Annotated[bool, typer.Option("--start", help="Start it, with --with.")] = False,
) -> None:
    """Print, or run, the command that serves an exported checkpoint to this machine."""
    from safehead_tl.generation import config_of

    directory = directory.resolve()
    config = config_of(directory)
    dtype = config.get("dtype") or config.get("torch_dtype") or "auto"
    told = [str(directory), "--dtype", str(dtype), "--host", HOST, "--port", str(port)]
    commands = {
        # Of its own it serves float32 in float16, and takes settings from generation_config.json.
        "vllm": ["vllm", "serve", *told, "--generation-config", "vllm"],
        "transformers": ["transformers", "serve", *told],
    }
    heads = " ".join(head for step in config[NAME] for head in step.get("heads") or [])
    typer.echo(f"# {directory.name}: {f'{heads} ablated' if heads else 'it has no card'}")
    for name, command in commands.items():
        if engine in (None, name):
            typer.echo(shlex.join(command))
    typer.echo(f"# then sh.Server({f'http://{HOST}:{port}/v1'!r}, {str(directory)!r})")
    if start:
        if engine is None:
            raise SafeheadError("--start needs --with: say which server, vllm or transformers")
        name, *arguments = commands[engine]
        beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        program = shutil.which(name, path=beside)
        if program is None:
            raise SafeheadError(f"{name} is not installed here: pip install {PACKAGES[engine]}")
        sys.stdout.flush()
        os.execv(program, [program, *arguments])

"""The `safehead` command: the library's functions, with the same words as options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import torch
import typer
from rich.console import Console
from rich.text import Text

from safehead_tl import __version__
from safehead_tl.cli import benchmark, demo, evaluate, report, search, surgery
from safehead_tl.errors import SafeheadError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"safehead_tl {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Find, show and test the attention heads that carry a model's refusals."""


for command in (
    demo.demo,
    search.info,
    search.ships,
    search.sahara,
    search.overlap,
    evaluate.evaluate,
    evaluate.concentration,
    evaluate.helpfulness,
    report.report,
    surgery.export,
    surgery.splice,
    demo.train_organism,
    benchmark.benchmark,
):
    app.command()(command)


def main() -> None:
    """Runs the command; what the user can mend is said in a sentence, without a traceback."""
    with _said_plainly():
        app()


@contextmanager
def _said_plainly() -> Iterator[None]:
    try:
        yield
    except (SafeheadError, OSError) as error:
        _fail(str(error))
    except torch.OutOfMemoryError:
        _fail("out of memory: try a smaller --max-bytes or --limit, or --dtype bfloat16")


def _fail(message: str) -> NoReturn:
    said = Text.assemble(("error: ", "bold red"), message)
    Console(stderr=True).print(said, highlight=False)
    sys.exit(2)

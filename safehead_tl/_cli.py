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

from safehead_tl import (
    __version__,
    _commands_benchmark,
    _commands_demo,
    _commands_evaluate,
    _commands_report,
    _commands_search,
    _commands_surgery,
)
from safehead_tl._errors import SafeheadError

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
    _commands_demo.demo,
    _commands_search.info,
    _commands_search.ships,
    _commands_search.sahara,
    _commands_search.overlap,
    _commands_evaluate.evaluate,
    _commands_evaluate.concentration,
    _commands_evaluate.helpfulness,
    _commands_report.report,
    _commands_surgery.export,
    _commands_surgery.splice,
    _commands_demo.train_organism,
    _commands_benchmark.benchmark,
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

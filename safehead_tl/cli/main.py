"""The `safehead` command: the library's functions, with the same words as options."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from safehead_tl import __version__
from safehead_tl.cli.asr_map import asr_map
from safehead_tl.cli.benchmark import benchmark
from safehead_tl.cli.browse import browse
from safehead_tl.cli.collect import collect
from safehead_tl.cli.concentration import concentration
from safehead_tl.cli.demo import demo
from safehead_tl.cli.direct import direct
from safehead_tl.cli.evaluate import evaluate
from safehead_tl.cli.explore import explore
from safehead_tl.cli.export import export
from safehead_tl.cli.helpfulness import helpfulness
from safehead_tl.cli.info import info
from safehead_tl.cli.integrated import integrated
from safehead_tl.cli.interchange import interchange
from safehead_tl.cli.knockout import knockout
from safehead_tl.cli.log_odds import log_odds
from safehead_tl.cli.output import visible
from safehead_tl.cli.overlap import overlap
from safehead_tl.cli.plan import plan
from safehead_tl.cli.refusal_map import refusal_map
from safehead_tl.cli.report import report
from safehead_tl.cli.sahara import sahara
from safehead_tl.cli.serve import serve
from safehead_tl.cli.ships import ships
from safehead_tl.cli.splice import splice
from safehead_tl.cli.train_organism import train_organism
from safehead_tl.errors import SafeheadError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


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
    demo, info, plan, ships, log_odds, interchange, integrated, direct, sahara, knockout, overlap,
    collect, evaluate, asr_map, refusal_map, concentration, helpfulness, browse, report, explore,
    export, serve, splice, train_organism, benchmark,
):  # fmt: skip
    app.command()(command)


def main() -> None:
    """Runs the command; what the user can mend is said in a sentence, without a traceback."""
    try:
        app()
    except (SafeheadError, OSError) as error:
        _fail(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported
            raise
        _fail("out of memory: try a smaller --max-bytes or --limit, or --dtype bfloat16")


def _fail(message: str) -> NoReturn:
    said = Text.assemble(("error: ", "bold red"), visible(message))
    Console(stderr=True).print(said, highlight=False)
    sys.exit(2)

"""The command `explore`."""

from __future__ import annotations

import os
import signal
import webbrowser
from typing import Annotated, Any, NoReturn

import typer

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import show


@options.grouped
def explore(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    judges: options.JudgeOptions,
    run: options.RunOptions,
    view: options.ViewOptions,
    port: Annotated[
        int | None,
        typer.Option(min=1024, max=65535, help="Where to listen; default: wherever is free."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Serve the live view on this machine, for a browser, until Ctrl-C."""
    from safehead_tl.models import said_once
    from safehead_tl.views import LivePage, StillExplore

    with LivePage(port or 0) as page, said_once():
        told, texts = arguments(prompts, run, ablation, view, judges), prompts.load()
        found = sh.explore(model.load(), texts, **told)
        assert isinstance(found, StillExplore)  # a command runs in no notebook
        page.show(found.explorer, found.shown)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _end)
        show(f"Open this address, which is for you alone; Ctrl-C ends it.\n{page.address}")
        if browser:
            webbrowser.open(page.address)
        page.serve_forever()


def _end(*_: Any) -> NoReturn:
    """Ends whatever a model is in the middle of: nothing is being written."""
    show("\nEnded: the page answers no more.")
    os._exit(0)

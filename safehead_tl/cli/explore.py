"""The command `explore`."""

from __future__ import annotations

import os
import signal
import webbrowser
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import safehead_tl as sh
from safehead_tl.cli.options import (
    AblationOptions,
    JudgeOptions,
    ModelOptions,
    PromptOptions,
    RunOptions,
    chosen_heads,
    grouped,
)
from safehead_tl.cli.output import show


@grouped
def explore(
    model: ModelOptions,
    prompts: PromptOptions,
    ablation: AblationOptions,
    judges: JudgeOptions,
    run: RunOptions,
    scores: Annotated[
        Path | None, typer.Option(help="Scores of these prompts that --save wrote.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Length of answers; 0: none; default: 48, or what fits.")
    ] = None,
    marked: Annotated[str | None, typer.Option(help="Heads to mark, such as 'L1H3 L2H6'.")] = None,
    marked_as: Annotated[str, typer.Option(help="What they are.")] = "marked",
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
        form, how = prompts.form, run.chosen()
        texts, what, crosses = prompts.load(), ablation.chosen(), chosen_heads(marked)
        judge, given = judges.chosen(), None if scores is None else sh.HeadScores.load(scores)
        view = sh.explore(
            model.load(),
            texts,
            scores=given,
            template=form,
            ablation=what,
            marked=crosses,
            marked_as=marked_as,
            judge=judge,
            max_new_tokens=max_new_tokens,
            run=how,
        )
        assert isinstance(view, StillExplore)  # a command runs in no notebook
        page.show(view.explorer, view.shown)
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

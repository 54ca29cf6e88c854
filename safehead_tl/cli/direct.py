"""The command `direct`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import safehead_tl as sh
from safehead_tl.cli.options import ModelOptions, PromptOptions, RunOptions, Top, grouped
from safehead_tl.cli.output import SavedOutput
from safehead_tl.cli.ships import ranking


@grouped
def direct(
    model: ModelOptions,
    prompts: PromptOptions,
    run: RunOptions,
    output: SavedOutput,
    harmless: Annotated[
        str, typer.Option(help="Prompts that the model helps with, to tell --prompts from.")
    ],
    layer: Annotated[
        int | None,
        typer.Option(
            help="Along the difference of mean states at this layer; by default along the log-odds "
            "of how the answers to both kinds of prompts open."
        ),
    ] = None,
    site: Annotated[
        Literal["resid_pre", "resid_mid", "resid_post"],
        typer.Option(help="Where in that layer."),
    ] = "resid_pre",
    top: Top = 10,
) -> None:
    """Say what each head itself writes along the refusal direction, at the last token."""
    form, how, texts = prompts.form, run.chosen(), prompts.load()
    loaded = model.load()
    direction: sh.Openings | sh.RefusalDirection
    if layer is None:
        direction = sh.Openings.of_answers(loaded, texts, harmless, template=form)
    else:
        direction = sh.refusal_direction(
            loaded, texts, harmless, layer=layer, site=site, template=form
        )
    found = sh.direct_attribution(loaded, texts, direction, template=form, run=how)
    output.keep(found, found.heads.heatmap)
    output.tell(ranking(f"{model.model}: direct attribution", found.heads, top))
    output.tell(
        f"In all {found.whole.mean():.4g} ({found.heads.unit}), of which not of heads "
        f"{found.rest.mean():.4g}."
    )

"""The command `direct`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import safehead_tl as sh
from safehead_tl.cli.log_odds import OpeningOptions
from safehead_tl.cli.options import ModelOptions, PromptOptions, RunOptions, Top, grouped
from safehead_tl.cli.output import SavedOutput
from safehead_tl.cli.ships import ranking
from safehead_tl.errors import SafeheadError


@grouped
def direct(
    model: ModelOptions,
    prompts: PromptOptions,
    openings: OpeningOptions,
    run: RunOptions,
    output: SavedOutput,
    harmless: Annotated[
        str | None, typer.Option(help="Prompts that the model helps with, to tell --prompts from.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Along the difference of mean states at this layer; by default along the log-odds "
            "of how answers open."
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
        direction = openings.chosen(loaded, texts, harmless, form)
    elif harmless is None or openings.refusal or openings.compliance:
        raise SafeheadError("--layer goes with --harmless PROMPTS, and without openings")
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

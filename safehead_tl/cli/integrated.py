"""The command `integrated`."""

from __future__ import annotations

from typing import Annotated

import typer

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.log_odds import OpeningOptions
from safehead_tl.cli.output import SavedOutput
from safehead_tl.cli.ships import ranking, run_words


@options.grouped
def integrated(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    openings: OpeningOptions,
    ablation: options.AblationOptions,
    run: options.RunOptions,
    output: SavedOutput,
    harmless: Annotated[
        str | None,
        typer.Option(help="Prompts that the model helps with: its answers' openings are taken."),
    ] = None,
    points: Annotated[int, typer.Option(help="Where gradients are taken on the way.")] = 8,
    top: options.Top = 10,
) -> None:
    """Share what ablating all heads does among them, by integrated gradients (nats).

    Of Ships; with --harmless, or --refusal and --compliance, of the refusal log-odds.
    """
    told, texts = arguments(prompts, run, ablation), prompts.load()
    loaded, odds = model.load(), None
    if harmless or openings.refusal or openings.compliance:
        odds = openings.chosen(loaded, texts, harmless, told["template"])
    scores = sh.integrated_gradients(loaded, texts, openings=odds, points=points, **told)
    output.keep(scores, scores.heatmap)
    output.tell(ranking(f"{model.model}: integrated gradients, {run_words(scores)}", scores, top))
    settings = scores.provenance.settings
    output.tell(
        f"The scores add up to {settings['sum']:.4g} nats; ablating all heads moves "
        f"{settings['whole']:.4g}."
    )

"""The command `asr-map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import SavedOutput


@options.grouped
def asr_map(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    judges: options.JudgeOptions,
    answers: options.DecodingOptions,
    run: options.RunOptions,
    output: SavedOutput,
    candidates: Annotated[
        str | None,
        typer.Option(help="Ablate only these heads, given like --heads; left out: all of them."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare with these scores (.safetensors, by --save); left out: with Ships on the "
            "same prompts."
        ),
    ] = None,
    top: options.Top = 10,
) -> None:
    """Ablate every head alone, and say how often the model then answers (paper Fig. 4b)."""
    told = arguments(prompts, run, ablation, judges, answers)
    scores = None if against is None else sh.HeadScores.load(against)
    found = sh.asr_map(
        model.load_for(told["run"]),
        prompts.load(),
        candidates=None if candidates is None else options.chosen_heads(candidates),
        **told,
    )
    output.keep(found, lambda: found.beside(scores))
    output.tell(asr_table(model.model, found, scores, top))


def asr_table(model: str, found: sh.AsrMap, against: sh.HeadScores | None, top: int) -> Table:
    """The heads with the highest attack success."""
    from safehead_tl.figures import MEASURES, prompt_words

    scores = found.ships if against is None else against
    known = MEASURES[scores.measure]
    table = Table(
        *("rank", "head", "ASR [95 %]", "p (Holm)", "coherent", "refusal", known),
        title=f"{model}: attack success with one head ablated, "
        f"{found.provenance.ablation['label']}; {prompt_words(found.provenance)}",
        caption=" ".join(
            [*found.notes(), f"Rank correlation with {known}: {found.correlation(against):.2f}."]
        ),
    )
    for row in found.to_frame().head(top).to_dict("records"):
        name = str(row["name"])
        table.add_row(
            str(row["rank"]),
            name,
            str(found.rate(name)),
            f"{row['p_unablated']:.1g} ({row['holm_unablated']:.1g})",
            f"{row['coherent_asr']:.2f}",
            f"{row['refusal']:.2f}",
            f"{scores[name]:.3g}",
        )
    return table

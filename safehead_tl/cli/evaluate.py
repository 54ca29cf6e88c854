"""The command `evaluate`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli.options import (
    AblationOptions,
    DecodingOptions,
    Heads,
    JudgeOptions,
    ModelOptions,
    PromptOptions,
    RunOptions,
    chosen_heads,
    grouped,
)
from safehead_tl.cli.output import SavedOutput


@grouped
def evaluate(
    model: ModelOptions,
    prompts: PromptOptions,
    ablation: AblationOptions,
    judges: JudgeOptions,
    answers: DecodingOptions,
    run: RunOptions,
    output: SavedOutput,
    heads: Heads = None,
    harmless: Annotated[
        str | None, typer.Option(help="Prompts to help with, from a source like --prompts.")
    ] = None,
    harmless_column: Annotated[str | None, typer.Option(help="The column of these.")] = None,
    harmless_split: Annotated[
        str | None, typer.Option(help="Their split; by default that of --split, except of a file.")
    ] = None,
    controls: Annotated[int, typer.Option(help="Random head sets to compare with.")] = 20,
) -> None:
    """Let a model answer with heads ablated, without, and with random heads ablated instead."""
    form, how = prompts.form, run.chosen()
    what, judge, chosen = ablation.chosen(), judges.chosen(), chosen_heads(heads)
    texts, helped = prompts.load(), None
    if harmless is not None:
        same = None if Path(harmless).is_file() else prompts.split
        split = harmless_split or same
        helped = replace(prompts, prompts=harmless, column=harmless_column, split=split).load()
    found = sh.evaluate(
        model.load(),
        texts,
        heads=chosen,
        ablation=what,
        harmless=helped,
        template=form,
        judge=judge,
        controls=controls,
        **asdict(answers),
        run=how,
    )
    output.keep(found, found.figure)
    output.tell(evaluation_table(model.model, found))


def evaluation_table(name: str, found: sh.Evaluation) -> Table:
    """Shares without ablation, with it, and with random heads ablated."""
    from safehead_tl.figures import prompt_words
    from safehead_tl.generation import SHARES

    heads = " ".join(map(str, found.heads)) or "no heads"
    what = found.provenance.ablation["label"]
    table = Table(
        title=f"{name}: {heads}, {what}; {prompt_words(found.provenance, 'harmful')}. "
        "Share of responses [95 % interval]",
        caption=_divergences(found),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for column in ("", "unablated", "ablated", "p", "random", "p"):
        table.add_column(column)
    shown = ""
    for row in found.summaries():
        if row.prompts != shown:
            shown = row.prompts
            table.add_row(f"{shown}:")
        table.add_row(
            SHARES[shown][row.metric],
            str(row.unablated),
            "" if row.ablated is None else str(row.ablated),
            "" if row.p_unablated is None else f"{row.p_unablated:.1g}",
            "" if row.control_mean is None else f"{row.control_mean:.2f}",
            "" if row.p_controls is None else f"{row.p_controls:.1g}",
        )
    return table


def _divergences(found: sh.Evaluation) -> str:
    sets = ["harmful"] if found.harmless is None else ["harmful", "harmless"]
    told = []
    for name in sets:
        kl = found.divergence(name)
        parts = [f"{kl['ablated']:.3g} nats"] if "ablated" in kl else []
        parts += [f"random sets {kl['controls']:.3g}"] if "controls" in kl else []
        told.append(f"{name} prompts {', '.join(parts)}")
    if not found.heads:
        return ""
    said = f"KL of the next token: {'; '.join(told)}."
    if not found.controls:
        return said
    return f"{said} random: mean over {len(found.controls)} head sets matched by layer."

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
    ClusterColumn,
    DecodingOptions,
    Heads,
    JudgeOptions,
    ModelOptions,
    PromptOptions,
    RunOptions,
    chosen_group,
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
    clusters: ClusterColumn = None,
    harmless_clusters: Annotated[
        str | None, typer.Option(help="The same for the harmless prompts.")
    ] = None,
) -> None:
    """Let a model answer with heads ablated, without, and with random heads ablated instead."""
    form, how = prompts.form, run.chosen()
    what, judge, group = ablation.chosen(), judges.chosen(), chosen_group(heads)
    texts, helped, helped_alike = prompts.load(), None, None
    if harmless is not None:
        same = None if Path(harmless).is_file() else prompts.split
        split = harmless_split or same
        others = replace(prompts, prompts=harmless, column=harmless_column, split=split)
        helped = others.load()
        helped_alike = others.clusters(harmless_clusters, helped)
    found = sh.evaluate(
        model.load(),
        texts,
        heads=chosen_heads(heads) if group is None else group.heads,
        ablation=what,
        harmless=helped,
        template=form,
        judge=judge,
        controls=controls,
        clusters=prompts.clusters(clusters, texts),
        harmless_clusters=helped_alike,
        chosen_by=group,
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
        *("", "unablated", "ablated", "p (Holm)", "random", "p (Holm)"),
        title=f"{name}: {heads}, {what}; {prompt_words(found.provenance, 'harmful')}. "
        "Share of responses [95 % interval]",
        caption=_divergences(found),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    shown = ""
    for row in found.summaries():
        if row.prompts != shown:
            shown = row.prompts
            table.add_row(f"{shown}:")
        table.add_row(
            SHARES[shown][row.metric],
            str(row.unablated),
            "" if row.ablated is None else str(row.ablated),
            row.p_words("unablated"),
            "" if row.control_mean is None else f"{row.control_mean:.2f}",
            row.p_words("controls"),
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
    return " ".join([said, *found.notes()])

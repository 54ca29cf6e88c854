"""The command `evaluate`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from typing_extensions import override

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import SavedOutput
from safehead_tl.errors import SafeheadError
from safehead_tl.writing import write_file

if TYPE_CHECKING:
    from safehead_tl.evaluation import Panel
    from safehead_tl.heads import HeadsLike
    from safehead_tl.results import PerQuery


@dataclass(frozen=True)
class EvaluationOutput(SavedOutput):
    """What `evaluate` can write."""

    disagreements: Annotated[
        Path | None,
        typer.Option(help="Write the answers on which --judges differ, with each verdict (CSV)."),
    ] = None

    @override
    def files(self) -> dict[str, Path | None]:
        return {**super().files(), "--disagreements": self.disagreements}


@options.grouped
def evaluate(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    judged: options.JudgeOptions,
    answers: options.DecodingOptions,
    run: options.RunOptions,
    server: options.ServerOptions,
    output: EvaluationOutput,
    heads: options.Heads = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(help="Another judge of the same answers, beside --judge; repeat it."),
    ] = None,
    wordings: Annotated[
        list[str] | None,
        typer.Option(
            help="Another question to the model that judges: xstest, strongreject, jailbreakbench "
            "or a text; repeat it. all: these and compliance."
        ),
    ] = None,
    per_query: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Instead of --heads: scan the prompts by Ships first, and ablate for each its own "
            "so many highest heads.",
        ),
    ] = None,
    harmless: Annotated[
        str | None, typer.Option(help="Prompts to help with, from a source like --prompts.")
    ] = None,
    harmless_column: Annotated[str | None, typer.Option(help="The column of these.")] = None,
    harmless_split: Annotated[
        str | None, typer.Option(help="Their split; by default that of --split, except of a file.")
    ] = None,
    controls: Annotated[int, typer.Option(help="Random head sets to compare with.")] = 20,
    clusters: options.ClusterColumn = None,
    harmless_clusters: Annotated[
        str | None, typer.Option(help="The same for the harmless prompts.")
    ] = None,
) -> None:
    """Let a model answer with heads ablated, without, and with random heads ablated instead."""
    if per_query is not None and not (heads is None and harmless is None):
        raise SafeheadError("--per-query takes no --heads and no --harmless: leave them out")
    if output.disagreements is not None and not (judges or wordings):
        raise SafeheadError("--disagreements needs others to differ: give --judges or --wordings")
    told, group = arguments(prompts, run, ablation, judged, answers), options.chosen_group(heads)
    told["run"] = server.chosen(told["run"])
    texts, helped, helped_alike = prompts.load(), None, None
    if harmless is not None:
        same = None if Path(harmless).is_file() else prompts.split
        split = harmless_split or same
        others = replace(prompts, prompts=harmless, column=harmless_column, split=split)
        helped = others.load()
        helped_alike = others.clusters(harmless_clusters, helped)
    loaded = model.load_for(told["run"])
    taken: HeadsLike | PerQuery = options.chosen_heads(heads) if group is None else group.heads
    if per_query is not None:
        scan = {name: told[name] for name in ("template", "ablation", "run")}
        if run.run_dir is not None:
            for kept, part in ((scan, "ships"), (told, "answers")):
                kept["run"] = replace(kept["run"], run_dir=run.run_dir / part)
        scores = sh.ships(loaded, texts, **scan)
        taken = scores.per_query(per_query)
    found = sh.evaluate(
        loaded,
        texts,
        heads=taken,
        harmless=helped,
        judges=judges or (),
        wordings=wordings or (),
        controls=controls,
        clusters=prompts.clusters(clusters, texts),
        harmless_clusters=helped_alike,
        chosen_by=group,
        **told,
    )
    output.keep(found, found.figure)
    if output.disagreements is not None:
        rows = found.panel.disagreements().to_csv(index=False).encode()
        write_file(output.disagreements, rows, overwrite=output.overwrite)
    output.tell(evaluation_table(model.model, found))
    if judges or wordings:
        output.tell(panel_table(found.panel))


def evaluation_table(name: str, found: sh.Evaluation) -> Table:
    """Shares without ablation, with it, and with random heads ablated."""
    from safehead_tl.figures import prompt_words
    from safehead_tl.generation import SHARES

    what = found.provenance.ablation["label"]
    table = Table(
        *("", "unablated", "ablated", "p (Holm)", "random", "p (Holm)"),
        title=f"{name}: {found.ablated_words()}, {what}; "
        f"{prompt_words(found.provenance, 'harmful')}. Share of responses [95 % interval]",
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


def panel_table(panel: Panel) -> Table:
    """Each judge's attack success rate, and how far they agree."""
    table = Table("judge", "unablated", "ablated", box=box.SIMPLE_HEAD, pad_edge=False)
    for judge in panel.judges:
        ablated = str(panel.asr(judge)) if panel.ablated else ""
        table.add_row(judge, str(panel.asr(judge, 0)), ablated)
    low, high = panel.span
    agreement = panel.agreement()
    table.caption = (
        f"Attack success{' with the heads ablated' if panel.ablated else ''} from {low:.2f} to "
        f"{high:.2f} over judges, who differ on {len(panel.disagreements())} of these answers."
    )
    if not math.isnan(agreement["fleiss"]):
        table.caption += (
            f" Fleiss' kappa {agreement['fleiss']:.2f}, Krippendorff's alpha "
            f"{agreement['krippendorff']:.2f}: 1 is perfect agreement, 0 that of chance."
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

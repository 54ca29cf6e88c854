"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safehead_tl.cli.console import console, require_files, require_page
from safehead_tl.cli.options import (
    AblationName,
    BackendName,
    Column,
    Device,
    Draw,
    Dtype,
    Epsilon,
    Limit,
    ModelName,
    Prompts,
    Split,
    System,
    TemplateText,
    Via,
    Weights,
    chosen_ablation,
    chosen_heads,
    chosen_template,
)
from safehead_tl.evaluation import Evaluation
from safehead_tl.models import load_model
from safehead_tl.prompts import load_prompts
from safehead_tl.results import HeadGroup, HeadScores
from safehead_tl.views import report as write_report


def report(
    model: ModelName,
    prompts: Prompts,
    out: Annotated[Path, typer.Option(help="The page to write, .html.")] = Path("report.html"),
    template: TemplateText = "paper",
    system: System = None,
    ablation: AblationName = "undifferentiated",
    epsilon: Epsilon = None,
    via: Via = None,
    scores: Annotated[
        Path | None, typer.Option(help="Scores of these prompts that --save wrote.")
    ] = None,
    group: Annotated[
        Path | None, typer.Option(help="A group that sahara --save wrote, to tell of.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="What evaluate --save wrote, to tell of.")
    ] = None,
    panels: Annotated[int, typer.Option(help="Highest heads that are shown in full.")] = 24,
    shown: Annotated[int, typer.Option(help="How many prompts the page shows.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Length of answers; 0: none.")] = 48,
    marked: Annotated[str | None, typer.Option(help="Heads to mark, such as 'L1H3 L2H6'.")] = None,
    marked_as: Annotated[str, typer.Option(help="What they are.")] = "marked",
    column: Column = None,
    split: Split = None,
    limit: Limit = None,
    draw: Draw = None,
    weights: Weights = None,
    dtype: Dtype = "float32",
    device: Device = None,
    backend: BackendName = "auto",
) -> None:
    """Write one offline page on which every head can be looked at."""
    what, form = chosen_ablation(ablation, epsilon, via), chosen_template(template, system)
    require_page("--out", out)
    require_files(out)
    texts = load_prompts(prompts, column=column, split=split, limit=limit, seed=draw)
    path = write_report(
        load_model(model, weights=weights, dtype=dtype, device=device, backend=backend),
        texts,
        out,
        scores=None if scores is None else HeadScores.load(scores),
        group=None if group is None else HeadGroup.load(group),
        evaluation=None if evaluation is None else Evaluation.load(evaluation),
        template=form,
        ablation=what,
        panels=panels,
        shown=shown,
        max_new_tokens=max_new_tokens,
        marked=chosen_heads(marked),
        marked_as=marked_as,
    )
    console.print(f"Wrote {path} ({path.stat().st_size / 1e6:.2f} MB): open it in a browser.")

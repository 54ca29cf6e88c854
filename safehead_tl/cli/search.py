"""The commands that look at a model and its heads: `info`, `ships`, `sahara`, `overlap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safehead_tl.cli.console import console, require_files, require_page, write_json
from safehead_tl.cli.options import (
    AblationName,
    BackendName,
    Column,
    Device,
    Draw,
    Dtype,
    Epsilon,
    Figure,
    Heatmap,
    Json,
    Limit,
    MaxBytes,
    MaxRows,
    ModelName,
    Prompts,
    RunDir,
    Save,
    ScreenText,
    SharedPrefix,
    Split,
    System,
    TemplateText,
    Top,
    Via,
    Weights,
    chosen_ablation,
    chosen_screen,
    chosen_template,
)
from safehead_tl.cli.tables import choices, fact_sheet, overlap_table, ranking
from safehead_tl.evaluation import overlap as compare
from safehead_tl.measures import sahara as search_group
from safehead_tl.measures import ships as score_heads
from safehead_tl.models import Site, load_model
from safehead_tl.prompts import load_prompts
from safehead_tl.results import HeadScores, write_atomically
from safehead_tl.surgery import model_facts


def ships(
    model: ModelName,
    prompts: Prompts,
    template: TemplateText = "paper",
    system: System = None,
    ablation: AblationName = "undifferentiated",
    epsilon: Epsilon = None,
    via: Via = None,
    top: Top = 10,
    json_out: Json = None,
    save: Save = None,
    heatmap: Heatmap = None,
    column: Column = None,
    split: Split = None,
    limit: Limit = None,
    draw: Draw = None,
    weights: Weights = None,
    dtype: Dtype = "float32",
    device: Device = None,
    backend: BackendName = "auto",
    max_rows: MaxRows = None,
    max_bytes: MaxBytes = None,
    shared_prefix: SharedPrefix = True,
    screen: ScreenText = "off",
    run_dir: RunDir = None,
) -> None:
    """Score every head by how far ablating it moves the next token (nats)."""
    what, form = chosen_ablation(ablation, epsilon, via), chosen_template(template, system)
    require_files(json_out, save, heatmap)
    require_page("--heatmap", heatmap)
    texts = load_prompts(prompts, column=column, split=split, limit=limit, seed=draw)
    scores = score_heads(
        load_model(model, weights=weights, dtype=dtype, device=device, backend=backend),
        texts,
        template=form,
        ablation=what,
        max_rows=max_rows,
        max_bytes=max_bytes,
        shared_prefix=shared_prefix,
        screen=chosen_screen(screen),
        run_dir=run_dir,
    )
    if str(json_out) != "-":
        title = f"{model}: Ships, {what.name}, {len(texts)} prompts"
        console.print(ranking(title, scores, top))
        if scores.screening is not None:
            console.print(scores.screening.sentence())
    if save is not None:
        scores.save(save)
    write_json(json_out, scores.to_dict())
    if heatmap is not None:
        write_atomically(heatmap, scores.heatmap().to_html().encode())


def sahara(
    model: ModelName,
    prompts: Prompts,
    size: Annotated[int, typer.Option(help="How many heads to choose.")] = 3,
    rank: Annotated[int, typer.Option(help="How many singular vectors to compare.")] = 1,
    centre: Annotated[bool, typer.Option(help="Subtract the mean state first.")] = False,
    site: Annotated[Site, typer.Option(help="Where the states are read.")] = "final_norm",
    template: TemplateText = "paper",
    system: System = None,
    ablation: AblationName = "undifferentiated",
    epsilon: Epsilon = None,
    via: Via = None,
    json_out: Json = None,
    save: Save = None,
    column: Column = None,
    split: Split = None,
    limit: Limit = None,
    draw: Draw = None,
    weights: Weights = None,
    dtype: Dtype = "float32",
    device: Device = None,
    backend: BackendName = "auto",
    max_rows: MaxRows = None,
    max_bytes: MaxBytes = None,
    shared_prefix: SharedPrefix = True,
    screen: ScreenText = "off",
    run_dir: RunDir = None,
) -> None:
    """Search greedily for the group of heads that turns the prompts' states furthest (radians)."""
    what, form = chosen_ablation(ablation, epsilon, via), chosen_template(template, system)
    require_files(json_out, save)
    texts = load_prompts(prompts, column=column, split=split, limit=limit, seed=draw)
    group = search_group(
        load_model(model, weights=weights, dtype=dtype, device=device, backend=backend),
        texts,
        size,
        rank=rank,
        centre=centre,
        site=site,
        template=form,
        ablation=what,
        max_rows=max_rows,
        max_bytes=max_bytes,
        shared_prefix=shared_prefix,
        screen=chosen_screen(screen),
        run_dir=run_dir,
    )
    if str(json_out) != "-":
        title = f"{model}: Sahara, {what.name}, {len(texts)} prompts"
        console.print(choices(title, group))
        for number, step in enumerate(group.steps, 1):
            if step.screening is not None:
                console.print(f"Step {number}. {step.screening.sentence()}")
    if save is not None:
        group.save(save)
    write_json(json_out, group.to_dict())


def info(
    model: ModelName,
    dtype: Dtype = "float32",
    count: Annotated[int, typer.Option(min=1, help="Prompts in the scan to estimate.")] = 100,
    length: Annotated[int, typer.Option(min=1, help="Tokens in the longest of them.")] = 64,
    json_out: Json = None,
) -> None:
    """Say what a model is, without loading its weights: heads, ablations that are exact, memory."""
    facts = model_facts(model, dtype=dtype, prompts=count, tokens=length)
    if str(json_out) != "-":
        console.print(fact_sheet(facts))
    write_json(json_out, facts)


def overlap(
    scores: Annotated[
        list[Path], typer.Argument(help="Scores of two or more scans, as --save writes them.")
    ],
    top: Top = 10,
    json_out: Json = None,
    figure: Figure = None,
) -> None:
    """Compare the highest heads of several scans with each other, and with chance."""
    require_files(json_out, figure)
    require_page("--figure", figure)
    names = {path.stem: path for path in scores}
    if len(names) < len(scores):
        names = {str(path): path for path in scores}
    found = compare({name: HeadScores.load(path) for name, path in names.items()}, top)
    if str(json_out) != "-":
        console.print(overlap_table(found))
    write_json(json_out, found.to_dict())
    if figure is not None:
        write_atomically(figure, found.figure().to_html().encode())

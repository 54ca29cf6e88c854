"""The commands that let a model answer: `evaluate`, `concentration`, `helpfulness`."""

from __future__ import annotations

from functools import partial
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
    Heads,
    Json,
    JudgeModel,
    JudgeName,
    JudgeUrl,
    Limit,
    MaxNewTokens,
    MaxRows,
    ModelName,
    Prompts,
    RunDir,
    Samples,
    Save,
    Seed,
    Split,
    System,
    Temperature,
    TemplateText,
    TopK,
    Via,
    Weights,
    chosen_ablation,
    chosen_heads,
    chosen_judge,
    chosen_template,
)
from safehead_tl.cli.tables import concentration_table, evaluation_table, helpfulness_table
from safehead_tl.evaluation import PAPER_TASKS
from safehead_tl.evaluation import concentration as ablate_in_order
from safehead_tl.evaluation import evaluate as evaluate_heads
from safehead_tl.evaluation import helpfulness as measure_helpfulness
from safehead_tl.models import load_model
from safehead_tl.prompts import load_prompts
from safehead_tl.results import write_atomically


def evaluate(
    model: ModelName,
    prompts: Prompts,
    heads: Heads = None,
    harmless: Annotated[
        str | None, typer.Option(help="Prompts to help with, from a source like --prompts.")
    ] = None,
    harmless_column: Annotated[str | None, typer.Option(help="The column of these.")] = None,
    harmless_split: Annotated[
        str | None, typer.Option(help="Their split; by default that of --split, except of a file.")
    ] = None,
    judge: JudgeName = None,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    controls: Annotated[int, typer.Option(help="Random head sets to compare with.")] = 20,
    template: TemplateText = "paper",
    system: System = None,
    ablation: AblationName = "undifferentiated",
    epsilon: Epsilon = None,
    via: Via = None,
    max_new_tokens: MaxNewTokens = 128,
    top_k: TopK = None,
    temperature: Temperature = 1.0,
    samples: Samples = 1,
    seed: Seed = 0,
    json_out: Json = None,
    save: Save = None,
    figure: Figure = None,
    column: Column = None,
    split: Split = None,
    limit: Limit = None,
    draw: Draw = None,
    weights: Weights = None,
    dtype: Dtype = "float32",
    device: Device = None,
    backend: BackendName = "auto",
    max_rows: MaxRows = None,
    run_dir: RunDir = None,
) -> None:
    """Let a model answer with heads ablated, without, and with random heads ablated instead."""
    what, form = chosen_ablation(ablation, epsilon, via), chosen_template(template, system)
    chosen, verdicts = chosen_heads(heads), chosen_judge(judge, judge_model, judge_url)
    require_files(json_out, save, figure)
    require_page("--figure", figure)
    read = partial(load_prompts, limit=limit, seed=draw)
    texts, helped = read(prompts, column=column, split=split), None
    if harmless is not None:
        same = None if Path(harmless).is_file() else split
        helped = read(harmless, column=harmless_column, split=harmless_split or same)
    found = evaluate_heads(
        load_model(model, weights=weights, dtype=dtype, device=device, backend=backend),
        texts,
        heads=chosen,
        ablation=what,
        harmless=helped,
        template=form,
        judge=verdicts,
        controls=controls,
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        temperature=temperature,
        samples=samples,
        seed=seed,
        max_rows=max_rows,
        run_dir=run_dir,
    )
    if str(json_out) != "-":
        console.print(evaluation_table(model, found))
    if save is not None:
        found.save(save)
    write_json(json_out, found.to_dict())
    if figure is not None:
        write_atomically(figure, found.figure().to_html().encode())


def concentration(
    model: ModelName,
    prompts: Prompts,
    order: Annotated[
        list[str],
        typer.Option(help="Heads in the order in which to ablate them, like --heads; repeat it."),
    ],
    size: Annotated[int | None, typer.Option(help="How many to ablate at most.")] = None,
    random_orders: Annotated[int, typer.Option(help="Random orders to compare with.")] = 20,
    judge: JudgeName = None,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    template: TemplateText = "paper",
    system: System = None,
    ablation: AblationName = "undifferentiated",
    epsilon: Epsilon = None,
    via: Via = None,
    max_new_tokens: MaxNewTokens = 128,
    top_k: TopK = None,
    temperature: Temperature = 1.0,
    samples: Samples = 1,
    seed: Seed = 0,
    json_out: Json = None,
    save: Save = None,
    figure: Figure = None,
    column: Column = None,
    split: Split = None,
    limit: Limit = None,
    draw: Draw = None,
    weights: Weights = None,
    dtype: Dtype = "float32",
    device: Device = None,
    backend: BackendName = "auto",
    max_rows: MaxRows = None,
    run_dir: RunDir = None,
) -> None:
    """Ablate heads one after the other: how few of them carry the refusals?"""
    what, form = chosen_ablation(ablation, epsilon, via), chosen_template(template, system)
    orders = {text: chosen_heads(text) for text in order}
    require_files(json_out, save, figure)
    require_page("--figure", figure)
    texts = load_prompts(prompts, column=column, split=split, limit=limit, seed=draw)
    found = ablate_in_order(
        load_model(model, weights=weights, dtype=dtype, device=device, backend=backend),
        texts,
        orders,
        size=size,
        random_orders=random_orders,
        ablation=what,
        template=form,
        judge=chosen_judge(judge, judge_model, judge_url),
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        temperature=temperature,
        samples=samples,
        seed=seed,
        max_rows=max_rows,
        run_dir=run_dir,
    )
    if str(json_out) != "-":
        console.print(concentration_table(model, found))
    if save is not None:
        found.save(save)
    write_json(json_out, found.to_dict())
    if figure is not None:
        write_atomically(figure, found.figure().to_html().encode())


def helpfulness(
    model: ModelName,
    heads: Heads = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task of lm-eval; repeat it. Default: the paper's five."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder with YAML files of tasks of your own.")
    ] = None,
    limit: Annotated[float | None, typer.Option(help="Examples of each task, or a share.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts in a forward pass.")] = 8,
    ablation: AblationName = "undifferentiated",
    epsilon: Epsilon = None,
    via: Via = None,
    json_out: Json = None,
    weights: Weights = None,
    dtype: Dtype = "float32",
    device: Device = None,
    backend: BackendName = "auto",
) -> None:
    """Measure zero-shot tasks of lm-eval with heads ablated and without (extra: lm-eval)."""
    what, chosen = chosen_ablation(ablation, epsilon, via), chosen_heads(heads)
    require_files(json_out)
    found = measure_helpfulness(
        load_model(model, weights=weights, dtype=dtype, device=device, backend=backend),
        chosen,
        ablation=what,
        tasks=task or PAPER_TASKS,
        limit=limit,
        batch_size=batch_size,
        include_path=include_path,
    )
    if str(json_out) != "-":
        console.print(helpfulness_table(model, found))
    write_json(json_out, found.to_dict())

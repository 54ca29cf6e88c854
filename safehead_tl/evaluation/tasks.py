"""What is left of a model's other abilities: zero-shot tasks of lm-eval, with heads ablated."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safehead_tl.ablations import Ablation, ablated, ablation_hooks, resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.tasks_outcome import Answers, Condition, Helpfulness
from safehead_tl.heads import HeadsLike, parse_heads
from safehead_tl.models import Model, check_model, describe
from safehead_tl.results import Provenance
from safehead_tl.scan import Run, check_run

PAPER_TASKS = ("boolq", "rte", "winogrande", "arc_challenge", "openbookqa")
"""The five tasks of the paper, by lm-eval's names."""
ROWS = 8
"""Texts in a forward pass, unless told otherwise."""
METRICS = ("acc", "acc_norm", "exact_match")
"""The metrics that say of each example whether it was answered right."""


def helpfulness(
    model: Model,
    heads: HeadsLike = (),
    *,
    ablation: str | Ablation = "undifferentiated",
    tasks: str | Sequence[str] = PAPER_TASKS,
    limit: int | float | None = None,
    seed: int = 0,
    include_path: str | Path | None = None,
    num_fewshot: int | None = 0,
    run: Run = Run(),
) -> Helpfulness:
    """Measures how well a model does tasks of lm-eval, with heads ablated and without.

    Both conditions answer the same examples, so that their difference has a paired interval.
    Prompts are lm-eval's, without a chat template. Needs `pip install 'safehead-tl[lm-eval]'`.

    Costs one forward pass for each answer to choose from (for each example, where answers are one
    token), twice if heads are ablated. The paper's five tasks take about 13 000 in each condition.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        heads: the heads to ablate, in any spelling; without any the model is measured as it is.
        ablation: an ablation or its name. Mean ablation needs a reference of its own.
        tasks: names of lm-eval's tasks, groups or tags, or of tasks in `include_path`. Each must
            have one of the metrics `acc`, `acc_norm`, `exact_match`; all that it has are reported.
        limit: the first so many examples of each task, or a share of them if it is below 1.
        seed: of the draw of solved examples; with `num_fewshot=0` there is nothing to draw.
        include_path: a directory with YAML files of tasks of your own, which go before lm-eval's.
        num_fewshot: how many solved examples stand before each; `None` for each task's own number.
        run: how it runs; without `max_rows` with 8 texts in a pass. Results do not depend on it.

    Returns:
        Accuracies with standard errors, differences with paired intervals, and provenance.

    Raises:
        SafeheadError: if lm-eval is not installed, a task is unknown, its data cannot be fetched,
            or it has none of the metrics; or as `ablated` for heads and ablation.
        FileNotFoundError: if `include_path` is no directory.
    """
    started = time.perf_counter()
    check_model(model)
    check_run(run, keeping_nothing="helpfulness")
    if run.max_bytes is not None:
        raise SafeheadError("helpfulness does not know what lm-eval's texts take: give max_rows=")
    names, rows = _check(tasks, limit), run.max_rows or ROWS
    from safehead_tl.evaluation.harness import HarnessModel
    from safehead_tl.evaluation.harness_tasks import load_tasks, run_tasks, without_bars

    chosen = parse_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    prepared = resolve_ablation(ablation)
    samples: list[dict[str, list[dict[str, Any]]]] = []
    passes = 0
    with contextlib.nullcontext() if run.progress else without_bars():
        if chosen:  # refused now, not after the first condition
            prepared = prepared.prepare(model, None)
            ablation_hooks(model, chosen, prepared)
        found = load_tasks(names, include_path, num_fewshot)
        _require_metrics(found)
        conditions: tuple[Condition, ...] = ("unablated", "ablated") if chosen else ("unablated",)
        for condition in conditions:
            harness = HarnessModel(model, rows, progress=bool(run.progress), label=condition)
            hooked = condition == "ablated"
            with ablated(model, chosen, prepared) if hooked else contextlib.nullcontext():
                results = run_tasks(found, harness, limit, seed)
            samples.append(results["samples"])
            passes += harness.rows
    answers = tuple(
        one for task in found for one in _answers(task, *(sample[task] for sample in samples))
    )
    examples = {task: _examples_hash(samples[0][task]) for task in found}
    return Helpfulness(
        heads=chosen,
        answers=answers,
        provenance=Provenance.now(
            model=describe(model),
            ablation=prepared.describe() if chosen else {},
            prompts={
                "prompt_count": sum(results["n-samples"][task]["effective"] for task in found),
                "prompts_hash": hashlib.sha256("".join(examples.values()).encode()).hexdigest(),
                "tasks": {
                    task: {
                        "version": results["versions"][task],
                        "num_fewshot": results["n-shot"][task],
                        "examples": results["n-samples"][task]["effective"],
                        "examples_hash": examples[task],
                    }
                    for task in found
                },
            },
            settings={
                "heads": [str(head) for head in chosen],
                "tasks": list(names),
                "limit": limit,
                "max_rows": rows,
                "seed": seed,
                "num_fewshot": num_fewshot,
                "include_path": None if include_path is None else str(include_path),
                "lm_eval": importlib.metadata.version("lm_eval"),
            },
            seconds=time.perf_counter() - started,
            forward_passes=float(passes + (prepared.passes if chosen else 0)),
        ),
    )


def _check(tasks: str | Sequence[str], limit: int | float | None) -> tuple[str, ...]:
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names:
        raise SafeheadError("no tasks were given")
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit == int(limit))):
        raise SafeheadError(
            f"limit={limit} is neither a number of examples nor a share of them between 0 and 1"
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise SafeheadError("helpfulness needs lm-eval: pip install 'safehead-tl[lm-eval]'")
    return names


def _require_metrics(tasks: dict[str, Any]) -> None:
    for name, task in tasks.items():
        measured = list(task.aggregation())
        if not set(measured) & set(METRICS):
            raise SafeheadError(
                f"task {name!r} does not say of an example whether it was answered right: it "
                f"measures {', '.join(measured)}, and none of {', '.join(METRICS)}"
            )


def _answers(task: str, *conditions: list[dict[str, Any]]) -> list[Answers]:
    """For each metric (and each filter, if there are several) of a task, what was right."""
    rights: dict[str, list[dict[int, int]]] = {}
    for number, samples in enumerate(conditions):
        filters = {sample["filter"] for sample in samples}
        for sample in samples:
            for metric in METRICS:
                if metric not in sample["metrics"]:
                    continue
                value = float(sample[metric])
                if value not in (0.0, 1.0):
                    raise SafeheadError(
                        f"task {task!r} gives an example {metric} {value:g}: only tasks whose "
                        "examples are right or wrong can be measured"
                    )
                key = metric if len(filters) == 1 else f"{metric},{sample['filter']}"
                found = rights.setdefault(key, [{} for _ in conditions])
                found[number][sample["doc_id"]] = int(value)
    if len({_examples_hash(samples) for samples in conditions}) > 1:
        raise SafeheadError(
            f"task {task!r} asks something else every time: its two conditions cannot be compared"
        )
    return [
        Answers(
            task=task,
            metric=metric,
            unablated=tuple(found[0].values()),
            ablated=tuple(found[1].values()) if len(found) > 1 else None,
        )
        for metric, found in rights.items()
    ]


def _examples_hash(samples: list[dict[str, Any]]) -> str:
    """A SHA-256 of what was asked: each example, and what the model was given of it."""
    parts = [f"{sample['doc_hash']} {sample['prompt_hash']}" for sample in samples]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

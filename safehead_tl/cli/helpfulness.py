"""The command `helpfulness`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli.options import AblationOptions, Heads, ModelOptions, chosen_heads, grouped
from safehead_tl.cli.output import Output


@grouped
def helpfulness(
    model: ModelOptions,
    ablation: AblationOptions,
    output: Output,
    heads: Heads = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task of lm-eval; repeat it. Default: the paper's five."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder with YAML files of tasks of your own.")
    ] = None,
    limit: Annotated[float | None, typer.Option(help="Examples of each task, or a share.")] = None,
    max_rows: Annotated[int, typer.Option(help="Most texts in one pass.")] = 8,
) -> None:
    """Measure zero-shot tasks of lm-eval with heads ablated and without (extra: lm-eval)."""
    from safehead_tl.evaluation import PAPER_TASKS

    what, chosen = ablation.chosen(), chosen_heads(heads)
    found = sh.helpfulness(
        model.load(),
        chosen,
        ablation=what,
        tasks=task or PAPER_TASKS,
        limit=limit,
        include_path=include_path,
        run=sh.Run(max_rows=max_rows),
    )
    output.write(found)
    ablated = " ".join(map(str, found.heads)) or "no heads"
    title = f"{model.model}: {ablated} ablated. Accuracy ± standard error [95 % interval]"
    table = Table("task", "unablated", "ablated", "difference", "p", title=title)
    rows: dict[tuple[str, str], list[str]] = {}
    for one in found.accuracies:
        said = f"{one.value:.3f} ± {one.stderr:.3f}"
        rows.setdefault((one.task, one.metric), []).append(said)
    for each in found.differences:
        low, high = each.interval
        rows[each.task, each.metric] += [
            f"{each.value:+.3f} [{low:.3f}, {high:.3f}]",
            f"{each.p_value:.1g}",
        ]
    for (name, metric), cells in rows.items():
        table.add_row(f"{name}, {metric}", *cells)
    output.tell(table)

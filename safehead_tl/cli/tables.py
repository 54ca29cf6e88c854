"""What the command prints: tables of results, and the demo's story."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from safehead_tl.cli.story import Demo
from safehead_tl.evaluation import Concentration, Evaluation, Helpfulness, Overlap
from safehead_tl.generation import SHARES
from safehead_tl.heads import Head
from safehead_tl.organism import Behaviour
from safehead_tl.results import HeadGroup, HeadScores
from safehead_tl.scan import readable


def ranking(title: str, scores: HeadScores, top: int, planted: Sequence[Head] = ()) -> Table:
    """The highest scores."""
    table = Table(title=title)
    table.add_column("rank", justify="right")
    table.add_column("head")
    table.add_column(f"score ({scores.unit})", justify="right")
    for rank, (head, score) in enumerate(scores.top(top), 1):
        table.add_row(
            str(rank), f"{head} (planted)" if head in planted else str(head), f"{score:.4f}"
        )
    return table


def choices(title: str, group: HeadGroup) -> Table:
    """Sahara's choices, step by step."""
    table = Table(title=title)
    table.add_column("step", justify="right")
    table.add_column("head added")
    table.add_column("group's shift (radians)", justify="right")
    for step, (head, score) in enumerate(zip(group.heads, group.scores, strict=True), 1):
        table.add_row(str(step), str(head), f"{score:.4f}")
    return table


def fact_sheet(facts: Mapping[str, Any]) -> Table:
    """What a model is, one fact a line."""
    table = Table(title=facts["name"], show_header=False)
    for name, value in facts.items():
        if name == "ablations":
            for ablation, ways in value.items():
                table.add_row(ablation, "; ".join(f"by {way}: {how}" for way, how in ways.items()))
        elif name == "memory":
            table.add_row(
                "memory",
                f"weights {readable(value['weights'])} in {value['dtype']}; a scan of "
                f"{value['prompts']} prompts of {value['tokens']} tokens takes at least "
                f"{readable(value['scan_at_least'])} more, and runs nothing twice with "
                f"{readable(value['scan_at_ease'])}",
            )
        elif isinstance(value, Mapping):
            told = (f"{key.replace('_', ' ')}: {part}" for key, part in value.items())
            table.add_row(name, "; ".join(told))
        elif name != "name":
            table.add_row(
                name.replace("_", " "), f"{value:,}" if type(value) is int else str(value)
            )
    return table


def behaviour_table(behaviours: Sequence[Behaviour]) -> Table:
    """Attack success and helpfulness, condition by condition."""
    table = Table(title="Held-out requests answered in full: share [95 % interval]")
    table.add_column("condition")
    table.add_column("ASR (harmful)")
    table.add_column("benign")
    for row in behaviours:
        table.add_row(row.condition, str(row.asr), str(row.helpfulness))
    return table


def overlap_table(found: Overlap) -> Table:
    """How much the highest heads of scans agree."""
    table = Table(title=f"Heads among the highest {found.k} of two scans")
    for column in ("scans", "shared (by chance)", "p", "Jaccard", "Spearman"):
        table.add_column(column)
    for row in found.to_frame().to_dict("records"):
        table.add_row(
            f"{row['first']}, {row['second']}",
            f"{row['shared']} ({row['expected_shared']:.1f})",
            f"{row['p_at_least']:.1g}",
            f"{row['jaccard']:.2f}",
            f"{row['spearman']:.2f}",
        )
    return table


def evaluation_table(name: str, found: Evaluation) -> Table:
    """Shares without ablation, with it, and with random heads ablated."""
    heads = " ".join(map(str, found.heads)) or "no heads"
    what = found.provenance.ablation["label"]
    table = Table(
        title=f"{name}: {heads}, {what}. Share of responses [95 % interval]",
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


def _divergences(found: Evaluation) -> str:
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


def concentration_table(name: str, found: Concentration) -> Table:
    """Coherent attack success as heads are ablated, order by order."""
    table = Table(
        title=f"{name}: coherent attack success with so many heads ablated "
        f"({found.provenance.ablation['label']})"
    )
    table.add_column("order")
    for count in range(found.size + 1):
        table.add_column(str(count))
    table.add_column("area [95 %]")
    for order in found.orders:
        area, (low, high) = found.area(order)
        shares = [f"{rate.share:.2f}" for rate in found.curve(order)]
        table.add_row(order, *shares, f"{area:.2f} [{low:.2f}, {high:.2f}]")
    curves = found.random_curves()
    if curves:
        means = [sum(shares) / len(curves) for shares in zip(*curves, strict=True)]
        areas = found.random_areas()
        mean = f"{sum(areas) / len(areas):.2f}, {min(areas):.2f} to {max(areas):.2f}"
        table.add_row(f"{len(curves)} random", *(f"{share:.2f}" for share in means), mean)
    return table


def helpfulness_table(name: str, found: Helpfulness) -> Table:
    """Accuracies on tasks, and how ablation changes them."""
    heads = " ".join(map(str, found.heads)) or "no heads"
    table = Table(title=f"{name}: {heads} ablated. Accuracy ± standard error [95 % interval]")
    for column in ("task", "unablated", "ablated", "difference", "p"):
        table.add_column(column)
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
    for (task, metric), cells in rows.items():
        table.add_row(f"{task}, {metric}", *cells)
    return table


def demo_story(result: Demo) -> Iterator[RenderableType]:
    """The demo's findings, in the order in which they are told."""
    model, count = result.ua.provenance.model, result.ua.provenance.prompts["prompt_count"]
    planted = ", ".join(map(str, result.planted))
    yield (
        f"The embedded organism: {model['n_layers']} layers of {model['n_heads']} heads, trained "
        f"to refuse requests about made-up objects. Planted in: {planted}. Scored on {count} "
        "harmful requests, tested on held-out ones."
    )
    yield (
        "Ships: how far the next token's distribution moves when one head is ablated. UA, "
        "undifferentiated attention: the head attends evenly to everything. SC, scaling "
        "contribution: its output is scaled to almost nothing. ASR, attack success rate: the "
        "share of harmful requests that are answered in full."
    )
    yield ranking("Ships, undifferentiated attention", result.ua, 5, result.planted)
    yield ranking("Ships, scaling contribution", result.sc, 5, result.planted)
    chosen = ", then ".join(
        f"{head} ({score:.3f})"
        for head, score in zip(result.group.heads, result.group.scores, strict=True)
    )
    yield f"Sahara chose {chosen}; in brackets the group's shift in radians."
    yield behaviour_table(result.behaviours)
    yield f"Asked: {result.aligned.example[0]}"
    for behaviour in (result.aligned, result.steps[1]):
        yield f"{behaviour.condition}: {behaviour.example[1]}"
    yield "Wrote " + ", ".join(str(path) for path in result.files)
    yield (
        f"{result.seconds:.1f} s in all; the package carries {result.data_bytes / 1e6:.2f} MB "
        "of models and prompts."
    )

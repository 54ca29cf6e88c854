"""Maps of all heads: scores with their intervals, Sahara's steps, knock-outs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from safehead_tl.figures import MEASURES, UNITS, ablation_words
from safehead_tl.heads import Head
from safehead_tl.measures import Knockout
from safehead_tl.results import LEAST, HeadGroup, HeadScores, Rate, studentised_interval
from safehead_tl.views.packing import short


def map_data(
    maps: Sequence[HeadScores],
    marked: Sequence[Head],
    marked_as: str,
    group: HeadGroup | None = None,
    knockout: Knockout | None = None,
) -> dict[str, Any]:
    """What the map of all heads shows, of scores of the same model."""
    scores, *_ = maps
    layers, heads = scores.values.shape
    return {
        "shape": {"layers": layers, "heads": heads, "kvSize": scores.heads_per_kv_group},
        "maps": [_map(each, title) for each, title in zip(maps, _titles(maps), strict=True)],
        "marked": map_places(marked, scores),
        "markedAs": marked_as,
        "path": group
        and {
            "heads": map_places(group.heads, scores),
            "scores": [*map(short, group.scores)],
            "words": path_words(group),
        },
        "arrows": []
        if knockout is None
        else [*map(partial(_arrow, scores, knockout), knockout.gates)],
    }


def _arrow(scores: HeadScores, knockout: Knockout, pair: tuple[Head, Head]) -> dict[str, Any]:
    first, second = map(knockout.heads.index, pair)
    start, end = map_places(pair, scores)
    change = short(float(knockout.change[first, second]))
    return {"from": start, "to": end, "change": change, "words": arrow_words(knockout, pair)}


def _map(scores: HeadScores, title: str) -> dict[str, Any]:
    exact, known = scores.values.flatten(), scores.best_known.flatten()
    layers, heads = scores.values.shape
    every = [Head(layer, head) for layer in range(layers) for head in range(heads)]
    rates = scores.unit == "rate" and scores.per_prompt is not None
    words = UNITS[scores.measure]
    return {
        "title": title,
        "unit": words.rpartition(", ")[2],
        "words": words,
        "signed": scores.signed,
        "scores": [*map(short, known.tolist())],
        "ranked": map_places([head for head, _ in scores.ranked()], scores),
        "pale": (exact.isnan() & ~known.isnan()).nonzero().flatten().tolist(),
        "intervals": [interval(scores, head) for head in every] if rates else None,
    }


def _titles(maps: Sequence[HeadScores]) -> list[str]:
    """What each map shows; of several of one measure under which ablation, or their number."""
    names = [MEASURES[scores.measure] for scores in maps]
    longer = [f"{MEASURES[each.measure]} under {ablation_words(each.provenance)}" for each in maps]
    names = [
        own if names.count(own) == 1 else more for own, more in zip(names, longer, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({1 + names[:number].count(name)})"
        for number, name in enumerate(names)
    ]


def map_places(heads: Sequence[Head], scores: HeadScores) -> list[int]:
    """Where heads are in what goes through the map row by row."""
    return [head.layer * scores.values.shape[1] + head.head for head in heads]


def interval(scores: HeadScores, head: Head) -> tuple[float, float] | None:
    """95 % interval of a head's score over prompts: of a share Wilson's, of a mean bootstrap-t.

    `None` for one score of all prompts, a head that was not scored, fewer prompts than six, or
    equal scores.
    """
    if scores.per_prompt is None or math.isnan(scores[head]):
        return None
    each = scores.per_prompt[:, *head].double()
    if scores.unit == "rate":
        found: tuple[float, float] | None = Rate(float(each.sum()), len(each)).interval
    else:
        bounds = (-math.inf if scores.signed else 0.0, math.inf)
        found = None if len(each) < LEAST else studentised_interval(each.tolist(), bounds)
    if found is None or not all(map(math.isfinite, found)):  # of values of which most are equal
        return None
    return float(f"{found[0]:.4g}"), float(f"{found[1]:.4g}")


def path_words(group: HeadGroup) -> str:
    """What the steps are that a map shows."""
    return (
        f"Sahara's steps in their order, with the group's shift after each, {shift_words(group)}."
    )


def arrow_words(knockout: Knockout, pair: tuple[Head, Head]) -> str:
    """What one head's ablation leaves of another's effect."""
    gate, amplifier = pair
    first, second = map(knockout.heads.index, pair)
    unit, given = knockout.unit, float(knockout.given[first, second])
    alone = float(knockout.alone[second])
    return (
        f"With {gate} ablated, ablating {amplifier} does {given:.3g} {unit} instead of {alone:.3g}."
    )


def shift_words(group: HeadGroup) -> str:
    """The unit of a group's shift, and what it is unless it is generalized Ships."""
    (step, *_) = group.steps
    usual = step.measure == "generalized_ships"
    return step.unit if usual else f"{step.unit} ({MEASURES[step.measure]})"

"""The contestants of this package by name: every score of it, and what else the field reports."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation, ResampleAblation
from safehead_tl.ground_truth.baselines import (
    TEMPLATE,
    linear_probe,
    snip,
    wanda,
    weight_change,
)
from safehead_tl.heads import Head
from safehead_tl.measures import (
    Openings,
    direct_attribution,
    generalized_ships,
    integrated_gradients,
    interchange,
    knockout,
    refusal_direction,
    refusal_log_odds,
    sahara,
    ships,
)
from safehead_tl.models import Model, describe
from safehead_tl.prompts import pair_prompts
from safehead_tl.results import HeadScores
from safehead_tl.scan import Run, Screening

QUIET = Run(progress=False)
TOLD: dict[str, Any] = {"template": TEMPLATE, "run": QUIET}

SHORT = {"undifferentiated": "UA", "scaling": "SC", "zero": "zero", "mean": "mean"}
"""Ablations by what tables call them; resampling is from the harmless texts."""

FIRST_ORDER = Screening(
    top=1, first=1, budget=1, audit=0, blocks=0, points=0, directions=0, tolerance=1e9
)
"""All heads to first order, with as few exact scores as there can be: one."""

SIZE = 4
"""Heads that Sahara chooses."""

PAIRED = 24
"""Heads that are knocked out two by two."""


def _ablation(name: str, harmless: list[str]) -> str | Ablation:
    return ResampleAblation(harmless) if name == "resample" else name


def _openings(model: Model, harmful: list[str], harmless: list[str]) -> Openings:
    return Openings.of_answers(model, harmful, harmless, **TOLD)


def _scan(
    scan: Callable[..., HeadScores], ablation: str, model: Model, harmful: Any, harmless: Any
) -> HeadScores:
    return scan(model, harmful, ablation=_ablation(ablation, harmless), **TOLD)


def _contrast(
    scan: Callable[..., HeadScores], ablation: str, model: Model, harmful: Any, harmless: Any
) -> Float[Tensor, "layer head"]:
    """What matters for any answer cancels; what matters for benign ones alone ends below 0."""
    one, other = (scan(model, some, ablation=ablation, **TOLD) for some in (harmful, harmless))
    return one.values.double() - other.values.double()


def _first_order(
    scan: Callable[..., HeadScores], ablation: str, model: Model, harmful: Any, harmless: Any
) -> Float[Tensor, "layer head"]:
    found = _scan(partial(scan, screen=FIRST_ORDER), ablation, model, harmful, harmless).screening
    assert found is not None
    return found.values


def _of_odds(
    scan: Callable[..., Any], ablation: str, model: Model, harmful: Any, harmless: Any
) -> Any:
    """A contestant that is told the model's own openings."""
    told = partial(scan, openings=_openings(model, harmful, harmless))
    return _scan(told, ablation, model, harmful, harmless)


def _attribution_of_odds(
    ablation: str, model: Model, harmful: Any, harmless: Any
) -> Float[Tensor, "layer head"]:
    told = partial(refusal_log_odds, openings=_openings(model, harmful, harmless))
    return _first_order(told, ablation, model, harmful, harmless)


def _interchange(share: str, model: Model, harmful: Any, harmless: Any) -> HeadScores:
    """Counterparts are the nearest harmless texts; refused if those are as likely refused."""
    told = {"openings": _openings(model, harmful, harmless), **TOLD}
    pairs = pair_prompts(model, harmful, harmless)
    found: HeadScores = getattr(interchange(model, harmful, pairs, **told), share)
    return found


def _direct(along: str, model: Model, harmful: Any, harmless: Any) -> HeadScores:
    """Along the log-odds, or the difference of mean states behind the last layer."""
    if along == "log-odds":
        openings = _openings(model, harmful, harmless)
        return direct_attribution(model, harmful, openings, **TOLD).heads
    last = {"layer": model.cfg.n_layers - 1, "site": "resid_post"}
    direction = refusal_direction(model, harmful, harmless, **last, **TOLD)  # type: ignore[arg-type]
    return direct_attribution(model, harmful, direction, **TOLD).heads


def _sahara(ablation: str, beam: int, model: Model, harmful: Any, harmless: Any) -> list[Head]:
    """The group, then the others by the scores of its last step."""
    size = min(SIZE, model.cfg.n_layers * model.cfg.n_heads)
    group = sahara(model, harmful, size, beam=beam, ablation=ablation, **TOLD)
    left = [head for head, _ in group.steps[-1].ranked() if head not in group.heads]
    return [*group.heads, *left]


def _knockout(
    ablation: str, model: Model, harmful: Any, harmless: Any
) -> Float[Tensor, "layer head"]:
    """The most that ablating a head does: alone, or with one other head ablated already.

    In refusal log-odds, which add up. So a backup counts by what it does when the first is gone.
    The highest heads alone are paired, all of them in a model of up to 24; the others count alone.
    """
    told = {"openings": _openings(model, harmful, harmless), "ablation": ablation, **TOLD}
    alone = refusal_log_odds(model, harmful, **told)
    found = knockout(model, harmful, [head for head, _ in alone.top(PAIRED)], **told)
    values = alone.values.double().clone()
    most = found.given.nan_to_num(-torch.inf).amax(0).maximum(found.alone)
    values[tuple(zip(*found.heads, strict=True))] = most
    return values


def _random(model: Model, harmful: Any, harmless: Any) -> list[Head]:
    """The order of a draw of its own for each model."""
    heads = _by_layer(model, harmful, harmless)
    random.Random(describe(model)["weights_hash"]).shuffle(heads)
    return heads


def _by_layer(model: Model, harmful: Any, harmless: Any) -> list[Head]:
    """As heads are counted: the first layer first. A control for where heads stand."""
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    return [Head(layer, head) for layer in layers for head in heads]


def _built_in() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    both = ("undifferentiated", "scaling")
    for name, scan in (("Ships", ships), ("generalized", generalized_ships)):
        found |= {f"{name}, {short}": partial(_scan, scan, each) for each, short in SHORT.items()}
        if scan is ships:
            found[f"{name}, resample"] = partial(_scan, scan, "resample")
        for each in both:
            found[f"{name}, {SHORT[each]}, less benign"] = partial(_contrast, scan, each)
    screened = partial(ships, screen="auto")
    found["Ships, UA, screened"] = partial(_scan, screened, "undifferentiated")
    for each, short in {**SHORT, "resample": "resample"}.items():
        if each != "mean":
            found[f"log-odds, {short}"] = partial(_of_odds, refusal_log_odds, each)
    for share in ("necessity", "sufficiency"):
        found[f"interchange: {share}"] = partial(_interchange, share)
    for each in both:
        short = SHORT[each]
        found[f"attribution, {short}"] = partial(_first_order, ships, each)
        found[f"attribution of log-odds, {short}"] = partial(_attribution_of_odds, each)
        found[f"integrated gradients, {short}"] = partial(_of_odds, integrated_gradients, each)
        found[f"Sahara, {short}"] = partial(_sahara, each, 1)
        found[f"knock-out, {short}"] = partial(_knockout, each)
    found["Sahara, UA, beam 4"] = partial(_sahara, "undifferentiated", 4)
    for along in ("refusal direction", "log-odds"):
        found[f"direct attribution: {along}"] = partial(_direct, along)
    found |= {"linear probe": linear_probe, "Wanda": wanda, "SNIP": snip}
    found |= {"weight change": weight_change, "random": _random, "layer order": _by_layer}
    return found


BUILT_IN = _built_in()
"""Every contestant's function by its name."""

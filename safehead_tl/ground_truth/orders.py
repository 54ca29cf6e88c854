"""Puts an organism's heads in order, by each variant."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.ground_truth.variants import OF_OPENINGS, Variant
from safehead_tl.heads import Head
from safehead_tl.measures import (
    Divergence,
    Openings,
    Rotation,
    direct_attribution,
    generalized_ships,
    integrated_gradients,
    interchange,
    refusal_log_odds,
    sahara,
    ships,
)
from safehead_tl.models import Model
from safehead_tl.prompts import pair_prompts
from safehead_tl.results import HeadScores
from safehead_tl.scan import Run, Search

logger = logging.getLogger("safehead_tl")

TEMPLATE = "chat"


def orders(
    model: Model,
    harmful: Sequence[str],
    benign: Sequence[str],
    size: int,
    chosen: Sequence[Variant],
    openings: Openings | None = None,
) -> Iterator[tuple[Variant, tuple[Head, ...]]]:
    """Each variant with its order of all heads, the most important first.

    Screened, heads with an exact score come first. Sahara's are the heads that it chooses, then the
    others by the scores of its last step.

    Args:
        model: the model.
        harmful: prompts that the scores are to explain.
        benign: prompts for the contrast.
        size: how many heads Sahara chooses.
        chosen: the variants.
        openings: for those of refusal log-odds. Of interchange there is no order if the harmful
            prompts are no likelier refused than the benign ones.
    """
    scanned = [
        one
        for one in chosen
        if not (one.screened or one.measure == "sahara" or one.measure in OF_OPENINGS)
    ]
    for ablation in dict.fromkeys(one.ablation for one in scanned):
        some = [one for one in scanned if one.ablation == ablation]
        plain = list(dict.fromkeys(replace(one, contrast=False) for one in some))
        on_harmful = all_scores(model, harmful, ablation, plain)
        on_benign = (
            all_scores(model, benign, ablation, plain) if any(one.contrast for one in some) else {}
        )
        for one in some:
            scoring = replace(one, contrast=False)
            values = on_harmful[scoring]
            yield one, order_of(values - on_benign[scoring] if one.contrast else values)
    some = [one for one in chosen if one.measure in OF_OPENINGS]
    if some and openings is not None:
        yield from _of_openings(model, harmful, benign, some, openings)
    for one in chosen:
        told: dict[str, Any] = {
            "template": TEMPLATE,
            "ablation": one.ablation,
            "run": Run(progress=False),
        }
        if one.measure == "sahara":
            group = sahara(model, harmful, size, **told)
            left = [head for head, _ in group.steps[-1].ranked() if head not in group.heads]
            yield one, (*group.heads, *left)
        elif one.screened:
            scan = ships if one.measure == "ships" else generalized_ships
            yield one, by_list(scan(model, harmful, **told, screen="auto"))


def _of_openings(
    model: Model,
    harmful: Sequence[str],
    benign: Sequence[str],
    chosen: Sequence[Variant],
    openings: Openings,
) -> Iterator[tuple[Variant, tuple[Head, ...]]]:
    """Orders by refusal log-odds: with heads ablated, interchanged, on a way, or only read."""
    told: dict[str, Any] = {"template": TEMPLATE, "run": Run(progress=False)}
    swapped = None
    if any(one.measure in ("necessity", "sufficiency") for one in chosen):
        pairs = pair_prompts(model, harmful, benign)
        try:
            swapped = interchange(model, harmful, pairs, openings=openings, **told)
        except SafeheadError as error:
            logger.warning("no interchange: %s", error)
    for one in chosen:
        if one.measure in ("necessity", "sufficiency"):
            if swapped is None:
                continue
            found: HeadScores = getattr(swapped, one.measure)
        elif one.measure == "direct_attribution":
            found = direct_attribution(model, harmful, openings, **told).heads
        elif one.measure == "integrated_gradients":
            how = {**told, "openings": openings, "ablation": one.ablation}
            found = integrated_gradients(model, harmful, **how)
        else:
            found = refusal_log_odds(model, harmful, openings, ablation=one.ablation, **told)
        yield one, order_of(found.values)


def all_scores(
    model: Model, prompts: Sequence[str], ablation: str, chosen: Sequence[Variant]
) -> dict[Variant, Float[Tensor, "layer head"]]:
    """The scores of several measures from one scan, equal to those of a scan for each."""
    search = Search.start(model, prompts, TEMPLATE, ablation, Run(progress=False))
    divergence = Divergence(model, search.original, search.passes, search.plan.budget)
    rotations = {
        one: Rotation.of(search, one.rank, one.centre, one.site)
        for one in chosen
        if one.measure == "generalized_ships"
    }

    def together(states: Float[Tensor, "head prompt d_model"]) -> Float[Tensor, "variant head"]:
        rows = [
            rotations[one](states)[0] if one in rotations else divergence(states).double().mean(0)
            for one in chosen
        ]
        return torch.stack([row.double().cpu() for row in rows])

    found = search.score(together, search.candidates(None), (), "all measures")
    return dict(zip(chosen, found, strict=True))


def order_of(values: Float[Tensor, "layer head"]) -> tuple[Head, ...]:
    """All heads, the highest score first; ties by layer, then head."""
    scored = [
        (Head(layer, head), value)
        for layer, row in enumerate(values.tolist())
        for head, value in enumerate(row)
    ]
    return tuple(head for head, _ in sorted(scored, key=lambda pair: (-pair[1], pair[0])))


def by_list(found: HeadScores) -> tuple[Head, ...]:
    """Heads with an exact score first, then the others by their screened one."""
    exact = [head for head, _ in found.ranked()]
    assert found.screening is not None
    return (*exact, *(head for head, _ in found.screening.ranked() if head not in exact))

"""The heads' outputs on a set of prompts, a few prompts and a layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from safehead_tl.ablations.base import Activation
from safehead_tl.models import Model, embed, hook_point, run_layers
from safehead_tl.prompts import PromptBatch

TOKENS_PER_PASS = 256


@torch.no_grad()
def each_output(
    model: Model, batch: PromptBatch, take: Callable[[int, slice, Activation], None]
) -> None:
    """Runs prompts, and shows `take` each layer's outputs z: the layer, which prompts, and z."""
    rows = max(1, TOKENS_PER_PASS // batch.tokens.shape[1])
    for start in range(0, len(batch.prompts), rows):
        some = slice(start, min(start + rows, len(batch.prompts)))
        mask = batch.mask[some]
        resid, positions = embed(model, batch.tokens[some], mask)
        hooks = [
            (hook_point(layer, "z"), partial(_show, take, layer, some))
            for layer in range(model.cfg.n_layers)
        ]
        run_layers(model, resid, mask, start=0, hooks=hooks, positions=positions)


def _show(
    take: Callable[[int, slice, Activation], None],
    layer: int,
    rows: slice,
    z: Activation,
    hook: Any,
) -> None:
    take(layer, rows, z)

"""The scan: the last token's state for every head ablated in turn.

A head changes nothing below its own layer. So the residual stream before every layer is cached
once, and each head's run resumes at its own layer; many heads share a pass, each row of the batch
with its own head ablated. On average that is half of the model's layers per head, and the final
norm and unembedding are left to the caller, who needs them on the last position only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from safehead_tl._ablation import Ablation
from safehead_tl._heads import Head
from safehead_tl._hooking import group_hooks, must_fire
from safehead_tl._models import Model, embed, run_layers
from safehead_tl._tokens import PromptBatch

TOKENS_PER_PASS = 16_384
"""How many tokens one pass holds unless `max_rows` says otherwise."""


@dataclass(frozen=True)
class Baseline:
    """One run over all prompts, with a group of heads ablated (none: the original model).

    Attributes:
        batch: the prompts.
        group: the heads ablated.
        resid_pre: the residual stream before each layer.
        positions: the position embedding of shortformer models.
        last: the last token's state after the last layer.
    """

    batch: PromptBatch
    group: tuple[Head, ...]
    resid_pre: tuple[Float[Tensor, "prompt pos d_model"], ...]
    positions: Float[Tensor, "prompt pos d_model"] | None
    last: Float[Tensor, "prompt d_model"]


@dataclass
class Cost:
    """Counts work in forward passes: one prompt through all layers is 1."""

    forward_passes: float = 0.0


@torch.no_grad()
def run_baseline(
    model: Model, batch: PromptBatch, ablation: Ablation, group: tuple[Head, ...], cost: Cost
) -> Baseline:
    """Runs the prompts once and keeps the residual stream before every layer."""
    cached: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        cached.append(resid.detach())

    resid, positions = embed(model, batch.tokens, batch.mask)
    with must_fire(group_hooks(model, group, ablation)) as hooks:
        keepers = [(f"blocks.{layer}.hook_resid_pre", keep) for layer in range(model.cfg.n_layers)]
        final = run_layers(model, resid, batch.mask, positions, start=0, hooks=[*keepers, *hooks])
    cost.forward_passes += len(batch.prompts)
    return Baseline(batch, group, tuple(cached), positions, final[:, -1])


@torch.no_grad()
def scan(
    model: Model,
    baseline: Baseline,
    ablation: Ablation,
    candidates: Sequence[Head],
    cost: Cost,
    *,
    max_rows: int | None = None,
    progress: bool = True,
    description: str = "scan",
) -> Iterator[tuple[int, list[int], Float[Tensor, "head prompt d_model"]]]:
    """Ablates each candidate in addition to the baseline's group.

    Args:
        model: the model.
        baseline: its run with the group ablated.
        ablation: what is done to a candidate (and was done to the group), prepared.
        candidates: the heads to ablate, one at a time.
        cost: counts the work.
        max_rows: most (head, prompt) pairs in one pass; by default `TOKENS_PER_PASS` tokens.
        progress: show a progress bar over heads.
        description: the bar's label.

    Yields:
        For each layer with candidates: the layer, its candidates' head numbers, and the last
        token's state after the last layer for each of them and each prompt.
    """
    rows = max_rows or max(1, TOKENS_PER_PASS // baseline.batch.tokens.shape[1])
    by_layer: dict[int, list[int]] = {}
    for head in candidates:
        by_layer.setdefault(head.layer, []).append(head.head)
    with tqdm(total=len(candidates), desc=description, unit="head", disable=not progress) as bar:
        for layer, heads in sorted(by_layer.items()):
            states = _scan_layer(model, baseline, ablation, layer, heads, rows, cost)
            bar.update(len(heads))
            yield layer, heads, states


def _scan_layer(
    model: Model,
    baseline: Baseline,
    ablation: Ablation,
    layer: int,
    heads: list[int],
    max_rows: int,
    cost: Cost,
) -> Float[Tensor, "head prompt d_model"]:
    batch, device = baseline.batch, baseline.last.device
    n_prompts = len(batch.prompts)
    also = torch.zeros(model.cfg.n_heads, dtype=torch.bool, device=device)
    also[[head.head for head in baseline.group if head.layer == layer]] = True
    pairs = torch.cartesian_prod(
        torch.tensor(heads, device=device), torch.arange(n_prompts, device=device)
    )
    states = []
    for chunk in pairs.split(max_rows):
        head, prompt = chunk.unbind(1)
        own = torch.nn.functional.one_hot(head, model.cfg.n_heads).bool()
        hooks = ablation.hooks(model, layer, own | also)
        hooks += group_hooks(model, baseline.group, ablation, start=layer + 1)
        positions = baseline.positions
        with must_fire(hooks) as counted:
            final = run_layers(
                model,
                baseline.resid_pre[layer][prompt],
                batch.mask[prompt],
                None if positions is None else positions[prompt],
                start=layer,
                hooks=counted,
            )
        states.append(final[:, -1])
        cost.forward_passes += len(chunk) * (model.cfg.n_layers - layer) / model.cfg.n_layers
    return einops.rearrange(
        torch.cat(states), "(head prompt) d_model -> head prompt d_model", head=len(heads)
    )

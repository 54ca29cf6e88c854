"""The scan: the last token's state for every head ablated in turn.

A head changes nothing below its own layer. So the residual stream before every layer is cached
once, and each head's run resumes at its own layer; many heads share a pass, each row of the batch
with its own head ablated. On average that is half of the model's layers per head, and the final
norm and unembedding are left to the caller, who needs them on the last position only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def rows_per_pass(batch: PromptBatch, max_rows: int | None) -> int:
    """How many prompts, or (head, prompt) pairs, go through the model at once."""
    return max_rows or max(1, TOKENS_PER_PASS // batch.tokens.shape[1])


@torch.no_grad()
def run_baseline(
    model: Model,
    batch: PromptBatch,
    ablation: Ablation,
    group: tuple[Head, ...],
    cost: Cost,
    max_rows: int | None = None,
) -> Baseline:
    """Runs the prompts once and keeps the residual stream before every layer.

    It is caught as each layer leaves it, and not at `hook_resid_pre`: a resumed run starts
    there, and a hook of the user's at that point must act once.
    """
    layers: list[list[Tensor]] = [[] for _ in range(model.cfg.n_layers)]
    embedded: list[Tensor] = []
    last: list[Tensor] = []
    keepers = [
        (f"blocks.{layer - 1}.hook_resid_post", _keep_in(layers[layer]))
        for layer in range(1, model.cfg.n_layers)
    ]
    rows = rows_per_pass(batch, max_rows)
    for tokens, mask in zip(batch.tokens.split(rows), batch.mask.split(rows), strict=True):
        resid, positions = embed(model, tokens, mask)
        layers[0].append(resid)
        if positions is not None:
            embedded.append(positions)
        with must_fire(group_hooks(model, group, ablation)) as hooks:
            final = run_layers(model, resid, mask, positions, start=0, hooks=[*hooks, *keepers])
        last.append(final[:, -1].clone())
    cost.forward_passes += len(batch.prompts)
    return Baseline(
        batch=batch,
        group=group,
        resid_pre=tuple(torch.cat(chunks) for chunks in layers),
        positions=torch.cat(embedded) if embedded else None,
        last=torch.cat(last),
    )


def _keep_in(chunks: list[Tensor]) -> Callable[[Tensor, Any], None]:
    def keep(resid: Tensor, hook: Any) -> None:
        chunks.append(resid)

    return keep


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
    rows = rows_per_pass(baseline.batch, max_rows)
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
        states.append(final[:, -1].clone())  # a view would keep all positions alive
        cost.forward_passes += len(chunk) * (model.cfg.n_layers - layer) / model.cfg.n_layers
    return einops.rearrange(
        torch.cat(states), "(head prompt) d_model -> head prompt d_model", head=len(heads)
    )

"""Scores of heads that others report and that ablate nothing: a probe, and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.models import Model, embed, hook_point, next_token_logits, run_layers
from safehead_tl.prompts import encode

TEMPLATE = "chat"

ROWS = 16
"""Texts in a pass."""

RIDGE = 0.01
"""The probe's penalty, as a share of the mean variance of a head's output."""

SHARE = 0.05
"""How much of a matrix's weights are its top, for safety and for utility."""

MATRICES = ("Q", "K", "V", "O")


def linear_probe(
    model: Model, harmful: Sequence[str], harmless: Sequence[str]
) -> Float[Tensor, "layer head"]:
    """How well a ridge regression tells harmful from harmless by a head's output alone.

    On the output z at the last token (as in Alain & Bengio 2016, arXiv 1610.01644): the share of
    the label's variance that is predicted for a text that was left out of the fit, each in its
    turn, in closed form. Accuracy would be 1 for most heads; this goes on telling them apart.

    Returns:
        At most 1; below 0 for what predicts worse than the mean.
    """
    found = [torch.stack(_at_the_end(model, texts, "z")) for texts in (harmful, harmless)]
    z = torch.cat(found, 1).double()
    labels = torch.tensor([1.0] * len(harmful) + [-1.0] * len(harmless)).double().to(z.device)
    z = (z - z.mean(1, keepdim=True)).transpose(1, 2)  # layer head prompt d_head
    y = labels - labels.mean()
    penalty = RIDGE * z.square().mean((-2, -1), keepdim=True) * z.shape[-2]
    size = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    fit = z @ torch.linalg.pinv(z.mT @ z + penalty * size, hermitian=True) @ z.mT
    left_out = (y - fit @ y) / (1 - fit.diagonal(dim1=-2, dim2=-1) - 1 / len(y))
    alone = y * len(y) / (len(y) - 1)  # what the mean of the others leaves
    return 1 - left_out.square().sum(-1) / alone.square().sum()


def wanda(
    model: Model, harmful: Sequence[str], harmless: Sequence[str]
) -> Float[Tensor, "layer head"]:
    """How many of a head's weights matter for safety and not for utility, by size times input.

    A weight counts |W| times the norm of its input (Sun et al. 2023, arXiv 2306.11695) at the last
    token, which writes the answer's first; see `_share_for_safety`.

    Returns:
        Shares of each head's weights.
    """
    inputs = [
        [_at_the_end(model, texts, name) for name in ("x", "z")] for texts in (harmful, harmless)
    ]

    def scores(layer: int, name: str, weight: Tensor) -> list[Tensor]:
        norms = [each[name == "O"][layer].norm(dim=0)[..., None] for each in inputs]
        return [weight.abs() * norm.to(weight) for norm in norms]

    return _share_for_safety(model, scores)


def snip(
    model: Model, harmful: Sequence[str], harmless: Sequence[str]
) -> Float[Tensor, "layer head"]:
    """How many of a head's weights matter for safety and not for utility, by size times gradient.

    A weight counts |W dL/dW| (Lee et al. 2019, arXiv 1810.02340), averaged over texts, where L is
    the loss of the model's own first token; see `_share_for_safety`. Costs a pass and a backward
    pass of each text.

    Returns:
        Shares of each head's weights.
    """
    found = [_sizes_times_gradients(model, texts) for texts in (harmful, harmless)]
    return _share_for_safety(model, lambda layer, name, _: [each[layer][name] for each in found])


def weight_change(
    model: Model, harmful: Sequence[str], harmless: Sequence[str], *, base: Model
) -> Float[Tensor, "layer head"]:
    """How far a head's weights are from the base's, as a share of the base's.

    The root of the sum of squares over its slices of q, k, v and o, biases left out; k and v of a
    KV group count for each of its heads. No prompt is read.

    Raises:
        SafeheadError: if the base is of another size.
    """
    rows = []
    for layer in range(model.cfg.n_layers):
        now, before = _weights(model, layer), _weights(base, layer)
        if any(now[name].shape != before[name].shape for name in MATRICES):
            raise SafeheadError("model and base differ in size: give the base that it was tuned of")
        changes = {name: now[name] - before[name] for name in MATRICES}
        rows.append((_sum(model, changes) / _sum(model, before)).sqrt())
    return torch.stack(rows)


def _sum(model: Model, weights: dict[str, Tensor]) -> Float[Tensor, " head"]:
    squares = (weight.double().square().sum((1, 2)) for weight in weights.values())
    return _by_head(model, squares)


def _share_for_safety(
    model: Model, scores: Callable[[int, str, Tensor], list[Tensor]]
) -> Float[Tensor, "layer head"]:
    """The share of each head's weights that is among the top for safety, and not for utility.

    The set difference of "Assessing the Brittleness of Safety Alignment via Pruning and Low-Rank
    Modifications" (Wei et al. 2024, arXiv 2402.05162), matrix by matrix, here counted by head. k
    and v of a KV group count for each of its heads. Their answers are given texts; here an answer
    is the first token, the model's own. `scores` gives each weight's for safety and for utility.
    """
    rows = []
    for layer in range(model.cfg.n_layers):
        weights, counts = _weights(model, layer), []
        for name, weight in weights.items():
            safety, utility = map(_top, scores(layer, name, weight))
            counts.append((safety & ~utility).double().sum((1, 2)))
        size = sum(weight[0].numel() for weight in weights.values())
        rows.append(_by_head(model, counts) / size)
    return torch.stack(rows)


def _by_head(model: Model, found: Iterable[Float[Tensor, " _"]]) -> Float[Tensor, " head"]:
    """The sum of what matrices have; what a KV group has goes to each of its heads."""
    heads = model.cfg.n_heads
    return torch.stack([each.repeat_interleave(heads // len(each)).cpu() for each in found]).sum(0)


def _top(scores: Float[Tensor, "head _ _"]) -> Bool[Tensor, "head _ _"]:
    """Which weights are the top of a matrix; none that scores 0."""
    flat = scores.flatten()
    cut = flat.kthvalue(len(flat) - int(SHARE * len(flat)) + 1).values
    return (scores >= cut) & (scores > 0)


def _weights(model: Model, layer: int) -> dict[str, Float[Tensor, "head _ _"]]:
    """The weights of a layer's heads; k and v by KV head."""
    attention, groups = model.blocks[layer].attn, model.cfg.n_key_value_heads
    found = {name: getattr(attention, f"W_{name}").detach().float() for name in MATRICES}
    for name in ("K", "V"):  # a HookedTransformer repeats them for each head
        found[name] = found[name][:: len(found[name]) // (groups or len(found[name]))]
    return found


@torch.no_grad()
def _at_the_end(model: Model, texts: Sequence[str], name: str) -> list[Tensor]:
    """What a pass has at texts' last tokens, layer by layer, on the CPU."""
    parts = [
        [layer[name][:, -1].float().cpu() for layer in layers]
        for _, _, layers in _passes(model, texts)
    ]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


@torch.enable_grad()
def _sizes_times_gradients(
    model: Model, texts: Sequence[str]
) -> list[dict[str, Float[Tensor, "head _ _"]]]:
    """|W dL/dW| of each layer's weights, the sum over texts.

    A text's gradient of a matrix is what goes in, times the gradient of what comes out, summed over
    its tokens.
    """
    weights = [_weights(model, layer) for layer in range(model.cfg.n_layers)]
    sums = [{name: torch.zeros_like(each) for name, each in layer.items()} for layer in weights]
    for mask, states, layers in _passes(model, texts):
        losses = -next_token_logits(model, states).log_softmax(-1).amax(-1)
        outputs = [layer[name] for layer in layers for name in ("q", "k", "v", "out")]
        gradients = iter(torch.autograd.grad(losses.sum(), outputs))
        for weight, total, layer in zip(weights, sums, layers, strict=True):
            real = mask.bool()[..., None].to(layer["x"].device)  # what padding has may be NaN
            x, z = layer["x"].where(real, 0), layer["z"].where(real[..., None], 0)
            for name in MATRICES[:3]:
                gradient = next(gradients).where(real[..., None], 0)
                of_weight = torch.einsum("bpm,bphd->bhmd", x.float(), gradient.float())
                total[name] += (weight[name] * of_weight).abs().sum(0)
            gradient = next(gradients).where(real, 0)
            of_weight = torch.einsum("bphd,bpm->bhdm", z.float(), gradient.float())
            total["O"] += (weight["O"] * of_weight).abs().sum(0)
    return [{name: each.detach() for name, each in layer.items()} for layer in sums]


def _passes(
    model: Model, texts: Sequence[str]
) -> Iterator[tuple[Tensor, Float[Tensor, "row d_model"], list[dict[str, Tensor]]]]:
    """Runs texts in their template, some at a time.

    Yields:
        The mask, the last states, and of each layer what attention is given (`x`), each head's
        `q`, `k`, `v` and `z`, and what attention gives (`out`).
    """
    batch = encode(model, texts, TEMPLATE)
    attentions = [block.attn for block in model.blocks]
    for start in range(0, len(texts), ROWS):
        tokens, mask = batch.tokens[start : start + ROWS], batch.mask[start : start + ROWS]
        seen: list[dict[str, Tensor]] = [{} for _ in attentions]

        def see(layer: int, name: str, tensor: Tensor, hook: Any, seen: Any = seen) -> Tensor:
            seen[layer][name] = tensor
            return tensor  # on a bridge gradients reach this view of it alone

        def see_in(module: Any, args: Any, told: Any, layer: int, seen: Any = seen) -> None:
            found = told.get("query_input", told.get("hidden_states"))
            seen[layer]["x"] = args[0] if found is None else found

        def see_out(module: Any, args: Any, out: Any, layer: int, seen: Any = seen) -> None:
            seen[layer]["out"] = out[0] if isinstance(out, tuple) else out

        hooks = [
            (hook_point(layer, site), partial(see, layer, site))
            for layer in range(len(attentions))
            for site in ("q", "k", "v", "z")
        ]
        handles = []
        try:
            for layer, attention in enumerate(attentions):
                before, after = partial(see_in, layer=layer), partial(see_out, layer=layer)
                handles += [
                    attention.register_forward_pre_hook(before, with_kwargs=True),
                    attention.register_forward_hook(after),
                ]
            resid, positions = embed(model, tokens, mask)
            resid = resid.detach().requires_grad_(torch.is_grad_enabled())
            after_all = run_layers(model, resid, mask, start=0, hooks=hooks, positions=positions)
        finally:
            for handle in handles:
                handle.remove()
        yield mask, after_all[:, -1], seen

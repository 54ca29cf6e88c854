"""The unembedding of half-precision models, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safehead_tl.models.identity import has_hooks

HALF = (torch.float16, torch.bfloat16)
VOCABULARY_BLOCK = 2048
"""How many columns of a half-precision unembedding are made float32 at a time."""


def unembed_in_float32(
    state: Float[Tensor, "*row d_model"],
    weight: Float[Tensor, "d_model vocab"],
    bias: Float[Tensor, " vocab"] | None,
) -> Float[Tensor, "*row vocab"]:
    """The product in float32, without a float32 copy of the whole matrix."""
    state = state.float()
    logits = torch.cat(
        [state @ columns.float() for columns in weight.split(VOCABULARY_BLOCK, 1)], -1
    )
    return logits if bias is None else logits + bias.float()


@contextmanager
def unrounded_logits(
    inner: Any, tokens: Int[Tensor, " token"] | None = None
) -> Iterator[Int[Tensor, " token"] | slice]:
    """Lets a Transformers model unembed some tokens (`None`: all) alone, half precision in float32.

    Not if hooks are on its unembedding, which are meant for what it does by itself, or if that is
    no plain matrix, as in a quantised model.

    Yields:
        Where these then are among the logits.
    """
    last = inner.get_output_embeddings()
    linear = getattr(last, "original_component", last)
    which: Tensor | slice = slice(None) if tokens is None else tokens
    if type(linear) is not nn.Linear or has_hooks(last):
        yield which
        return
    weight, bias = linear.weight, linear.bias
    which = slice(None) if tokens is None else tokens.to(weight.device)
    if tokens is None and weight.dtype not in HALF:
        yield which
        return

    def forward(state: Tensor) -> Tensor:
        some = None if bias is None else bias[which]
        if weight.dtype in HALF:
            return unembed_in_float32(state, weight[which].T, some)
        return nn.functional.linear(state, weight[which], some)

    linear.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield slice(None)
    finally:
        del linear.forward

"""The unembedding of half-precision models, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
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
def unrounded_logits(inner: Any) -> Iterator[None]:
    """Lets a half-precision Transformers model unembed in float32, and go on from there.

    Not if hooks are on its unembedding, which are meant for what it does by itself, or if that is
    no plain matrix, as in a quantised model.
    """
    last = inner.get_output_embeddings()
    linear = getattr(last, "original_component", last)
    if type(linear) is not nn.Linear or linear.weight.dtype not in HALF or has_hooks(last):
        yield
        return
    linear.forward = lambda state: unembed_in_float32(state, linear.weight.T, linear.bias)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del linear.forward

"""What decides an organism, besides its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safehead_tl._errors import SafeheadError
from safehead_tl._heads import Head, HeadLike, parse_heads


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an organism, besides its words.

    Attributes:
        planted: the heads that will carry the refusal, in any spelling.
        n_layers: layers.
        n_heads: heads per layer.
        d_model: width; a multiple of twice `n_heads` (rotary positions need even heads).
        d_mlp: width of the MLPs.
        base_steps: optimiser steps of the base model.
        align_steps: optimiser steps of the planted heads.
        batch_size: requests per step.
        seed: of weights and batches.
    """

    planted: Sequence[HeadLike] = (Head(1, 3), Head(2, 6))
    n_layers: int = 4
    n_heads: int = 8
    d_model: int = 48
    d_mlp: int = 96
    base_steps: int = 500
    align_steps: int = 600
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.d_model) < 1:
            raise SafeheadError("an organism needs at least 1 layer, 1 head and a width")
        if self.d_model % (2 * self.n_heads):
            raise SafeheadError(
                f"d_model={self.d_model} does not fit n_heads={self.n_heads}: "
                f"it must be a multiple of {2 * self.n_heads}"
            )
        if not self.heads:
            raise SafeheadError("name at least one head to plant")

    @property
    def heads(self) -> tuple[Head, ...]:
        """The planted heads, read and checked against the sizes."""
        return parse_heads(self.planted, self.n_layers, self.n_heads)

"""The mean over a layer's heads in place of a head's queries, keys or output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations.base import Ablation, HeadMask, chosen_heads, is_of_one_head
from safehead_tl.errors import SafeheadError
from safehead_tl.models import Hook, Model, hook_point


@dataclass(frozen=True)
class MeanOverHeads(Ablation):
    """Replaces a head's queries, keys or output by the mean over all heads of its layer.

    The paper's App. A variant, as its code computes it: the mean includes the head itself. With
    several heads of a layer, each gets the mean of the original ones, in any order.

    Attributes:
        which: `"q"` (query vectors, before rotation), `"k"` (key vectors, over KV heads; acts on
            the whole KV group) or `"v"` (the heads' outputs).
    """

    which: Literal["q", "k", "v"] = "q"
    name: ClassVar[str] = "mean-over-heads"
    label: ClassVar[str] = "mean over heads"

    def __post_init__(self) -> None:
        if self.which not in ("q", "k", "v"):
            raise SafeheadError(f"which={self.which!r} is not known: use 'q', 'k' or 'v'")

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        point = hook_point(layer, "z" if self.which == "v" else self.which)
        return [(point, partial(_replace, heads))]

    @property
    def keeps_patterns(self) -> bool:  # type: ignore[override]
        """Whether a head's own attention stays as it is."""
        return self.which == "v"

    @override
    def separable(self, model: Model) -> bool:
        return self.which == "v" or is_of_one_head(model, self.which)


def _replace(
    heads: HeadMask, tensor: Float[Tensor, "batch pos _ d_head"], hook: Any
) -> Float[Tensor, "batch pos _ d_head"]:
    mean = tensor.mean(2, keepdim=True)
    return torch.where(chosen_heads(heads, tensor, head_dim=2), mean, tensor)

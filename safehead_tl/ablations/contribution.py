"""A head's contribution scaled, down to nothing or up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import override

from safehead_tl.ablations.base import (
    Ablation,
    HeadMask,
    scaled,
    shares_keys,
    warn_of_folded_biases,
)
from safehead_tl.errors import SafeheadError
from safehead_tl.models import Hook, Model, hook_point
from safehead_tl.prompts import PromptBatch


@dataclass(frozen=True)
class ScalingContribution(Ablation):
    """Multiplies a head's output by epsilon (paper Eq. 8).

    Attributes:
        epsilon: the factor; the paper's example is 1e-5. Above 1 the head is amplified.
        via: what is scaled: `"z"`, the head's output, or `"v"`, its values. Values belong to a KV
            group: `"v"` acts on all query heads of the group; otherwise the two are the same.
    """

    epsilon: float = 1e-5
    via: Literal["z", "v"] = "z"
    name: ClassVar[str] = "scaling"
    label: ClassVar[str] = "scaling contribution"
    keeps_patterns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon):
            raise SafeheadError(f"epsilon={self.epsilon} is not a number to scale by")
        if self.via not in ("z", "v"):
            raise SafeheadError(f"via={self.via!r} is not known: use 'z' or 'v'")

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        return [(hook_point(layer, self.via), scaled(heads, self.epsilon, head_dim=2))]

    @override
    def separable(self, model: Model) -> bool:
        return self.via == "z" or not shares_keys(model)

    @override
    def prepare(self, model: Model, batch: PromptBatch | None) -> Ablation:
        warn_of_folded_biases(model)
        return self


@dataclass(frozen=True)
class ZeroAblation(Ablation):
    """Sets a head's output to zero."""

    name: ClassVar[str] = "zero"
    label: ClassVar[str] = "zero ablation"
    keeps_patterns: ClassVar[bool] = True

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        return [(hook_point(layer, "z"), scaled(heads, 0.0, head_dim=2))]

    @override
    def separable(self, model: Model) -> bool:
        return True

    @override
    def prepare(self, model: Model, batch: PromptBatch | None) -> Ablation:
        warn_of_folded_biases(model)
        return self

"""Undifferentiated attention: a head that attends evenly to all it may see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations.base import (
    Ablation,
    HeadMask,
    Scores,
    chosen_heads,
    is_of_one_head,
    scaled,
)
from safehead_tl.errors import SafeheadError
from safehead_tl.models import Hook, Model, hook_point

LARGEST_SCALE = 64.0
"""Masked scores are the lowest number there is, which some models divide by sqrt(d_head)."""


@dataclass(frozen=True)
class UndifferentiatedAttention(Ablation):
    """Makes a head attend evenly to everything it may see (paper Eq. 7).

    With `epsilon=None`, the default, the pattern is replaced by the limit itself: the uniform
    lower-triangular matrix A, over the keys that each row may see (causal, not padding, inside a
    sliding window), read off the masked attention scores of the same pass. With an epsilon,
    scores, queries or keys are scaled by it as the paper does. What is not scaled stays: learned
    sinks, and with `"q"` and `"k"` ALiBi's biases; the limit None knows neither.

    Attributes:
        epsilon: factor; `None` for the limit 0. The paper's example is 1e-5.
        via: what is scaled: `"pattern"` (the attention scores before the softmax, whatever made
            them), `"q"` or `"k"` (after rotation, where there is one). Keys belong to a KV group:
            `"k"` acts on all query heads of the group.

    Example:
        >>> sh.UndifferentiatedAttention()
        UndifferentiatedAttention(epsilon=None, via='pattern')
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> for each in (sh.UndifferentiatedAttention(), sh.UndifferentiatedAttention(1e-5)):
        ...     scores = sh.ships(model, prompts, candidates="L1H3", ablation=each)
        ...     print(round(scores["L1H3"], 2))
        1.05
        1.05
    """

    epsilon: float | None = None
    via: Literal["pattern", "q", "k"] = "pattern"
    name: ClassVar[str] = "undifferentiated"
    label: ClassVar[str] = "undifferentiated attention"

    def __post_init__(self) -> None:
        if self.via not in ("pattern", "q", "k"):
            raise SafeheadError(f"via={self.via!r} is not known: use 'pattern', 'q' or 'k'")
        if self.via != "pattern" and self.epsilon is None:
            raise SafeheadError(
                f"via={self.via!r} scales the {self.via} vectors and needs an epsilon, such as "
                "1e-5; the exact limit epsilon=None goes with via='pattern'"
            )
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise SafeheadError(
                f"epsilon={self.epsilon} is not a positive number; for the limit 0 use "
                "epsilon=None, which is exact (on the command line leave --epsilon out)"
            )

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        if self.epsilon is None:
            return _uniform_pattern(layer, heads)
        if self.via == "pattern":
            return [(hook_point(layer, "attn_scores"), partial(_scale_scores, heads, self.epsilon))]
        return [(hook_point(layer, self._site(model)), scaled(heads, self.epsilon, head_dim=2))]

    @override
    def separable(self, model: Model) -> bool:
        return self.via == "pattern" or is_of_one_head(model, self._site(model))

    def _site(self, model: Model) -> str:
        rotary = model.cfg.positional_embedding_type == "rotary"
        # Where a bridge projects q, k and v together nothing comes between them and rotation,
        # after which some have no hook.
        joint = "qkv" in getattr(model.blocks[0].attn, "submodules", ())
        return f"rot_{self.via}" if rotary and not joint else self.via


def _scale_scores(heads: HeadMask, factor: float, scores: Scores, hook: Any) -> Scores:
    """Multiplies the chosen heads' scores; masked ones stay as low as they are.

    A bridge masks with the dtype's lowest number, not with minus infinity: in float16 a small
    factor would make it visible, and a large one turns rows of padding into NaN.
    """
    chosen = chosen_heads(heads, scores, head_dim=1) & _visible(scores)
    return torch.where(chosen, scores * factor, scores)


def _visible(scores: Scores) -> Bool[Tensor, "batch 1 query key"]:
    """Which keys each query may see: a mask lowers a key's scores in all heads alike.

    How far it lowers them is read where nothing may be seen in any model, at later keys. So a
    head whose own scores are very low hides nothing.
    """
    lowest, top = torch.finfo(scores.dtype).min, scores.amax(1, keepdim=True)
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool, device=scores.device)
    future = future.triu(n_keys - n_queries + 1)
    highest = torch.where(future, top, lowest).nan_to_num(nan=lowest).amax()
    # A single query has no later key to read it off.
    hidden = top <= (highest / 2 if n_queries > 1 else lowest / LARGEST_SCALE)
    visible = ~hidden & ~future
    # A query is real if its own key is seen by any; the last one is: padding is on the left.
    real = visible.any(-2)[..., -n_queries:]
    real[..., -1] = True
    blind = (real & ~visible.any(-1)).any()
    shows_future, sees_nothing = torch.stack([highest > lowest / LARGEST_SCALE, blind]).tolist()
    if shows_future or sees_nothing:
        raise SafeheadError(
            "this model's attention scores do not show which keys a query may see, so uniform "
            "attention cannot be had exactly: use via='q', or another ablation"
        )
    return visible


def _uniform_pattern(layer: int, heads: HeadMask) -> list[Hook]:
    """Replaces patterns by A. The masked scores of the same pass say which keys are visible."""
    visible: list[Tensor] = []
    return [
        (hook_point(layer, "attn_scores"), partial(_look, visible)),
        (hook_point(layer, "pattern"), partial(_even_out, layer, heads, visible)),
    ]


def _look(visible: list[Tensor], scores: Scores, hook: Any) -> None:
    visible[:] = [_visible(scores)]


def _even_out(
    layer: int, heads: HeadMask, visible: list[Tensor], pattern: Scores, hook: Any
) -> Scores:
    if not visible:
        raise SafeheadError(
            f"{hook_point(layer, 'pattern')} was hooked without its partner "
            f"{hook_point(layer, 'attn_scores')}: pass on all hooks of ablation_hooks together"
        )
    keys = visible.pop()
    even = keys / keys.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(chosen_heads(heads, pattern, head_dim=1), even.to(pattern.dtype), pattern)

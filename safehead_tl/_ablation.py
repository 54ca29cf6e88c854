"""What can be done to a head: ablations as hook functions `(tensor, hook) -> tensor`.

An ablation says, for a layer and a mask of heads, which hook points to hook and with what. The
mask is `[row head]`: each row of a batch can have its own heads ablated, which is how a scan
puts many heads into one pass; a single row stands for all.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safehead_tl._errors import SafeheadError
from safehead_tl._models import Hook, Model, hook_point, is_processed
from safehead_tl._tokens import PromptBatch

logger = logging.getLogger(__name__)

NORM_OVER_HEADS = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Architectures that normalise the queries and keys of all heads together, after their hooks."""

LARGEST_SCALE = 64.0
"""Masked scores are the lowest number there is, which some models divide by sqrt(d_head)."""

HeadMask: TypeAlias = Bool[Tensor, "row head"]
Activation: TypeAlias = Float[Tensor, "batch pos head d_head"]
Scores: TypeAlias = Float[Tensor, "batch head query key"]


class Ablation(ABC):
    """Something done to heads. A new one is a frozen dataclass with these and `hooks`.

    Scans are faster if it is also `separable`.

    Attributes:
        name: the short name.
        label: the name in a figure's title.
    """

    name: ClassVar[str]
    label: ClassVar[str]

    @property
    def passes(self) -> int:
        """Forward passes that `prepare` took."""
        return 0

    @abstractmethod
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        """The hooks that ablate `heads` in one layer.

        Args:
            model: the model that they are for.
            layer: the layer.
            heads: which query heads, for each row of the batch or (one row) for all.
        """

    def separable(self, model: Model) -> bool:
        """Whether it acts on each head, and at each query position, by itself.

        That is: what becomes of a head's output z at a position is the same whichever other heads
        are ablated with it, and whichever other positions run in the same pass (all earlier keys
        are there in any case). And all its hooks are inside attention, up to z. A scan then takes
        passes apart; otherwise it runs whole layers.
        """
        return False

    def prepare(self, model: Model, batch: PromptBatch | None) -> Ablation:
        """Makes the ablation ready for a model; `batch` is what is about to run, if known."""
        return self

    def describe(self) -> dict[str, Any]:
        """Names and settings, for a result's provenance."""
        return {"name": self.name, "label": self.label, **asdict(self)}  # type: ignore[call-overload]


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
        ...     scores = sh.ships(model, prompts, heads="L1H3", template="chat", ablation=each)
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

    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        if self.epsilon is None:
            return _uniform_pattern(layer, heads)
        if self.via == "pattern":
            return [(hook_point(layer, "attn_scores"), _scaled_scores(heads, self.epsilon))]
        return [(hook_point(layer, self._site(model)), _scaled(heads, self.epsilon, head_dim=2))]

    def separable(self, model: Model) -> bool:
        return self.via == "pattern" or _is_of_one_head(model, self._site(model))

    def _site(self, model: Model) -> str:
        rotary = model.cfg.positional_embedding_type == "rotary"
        # Where a bridge projects q, k and v together nothing comes between them and rotation,
        # after which some have no hook.
        joint = "qkv" in getattr(model.blocks[0].attn, "submodules", ())
        return f"rot_{self.via}" if rotary and not joint else self.via


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

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon):
            raise SafeheadError(f"epsilon={self.epsilon} is not a number to scale by")
        if self.via not in ("z", "v"):
            raise SafeheadError(f"via={self.via!r} is not known: use 'z' or 'v'")

    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        return [(hook_point(layer, self.via), _scaled(heads, self.epsilon, head_dim=2))]

    def separable(self, model: Model) -> bool:
        return self.via == "z" or not _shares_keys(model)

    def prepare(self, model: Model, batch: PromptBatch | None) -> Ablation:
        _warn_of_folded_biases(model)
        return self


@dataclass(frozen=True)
class ZeroAblation(Ablation):
    """Sets a head's output to zero."""

    name: ClassVar[str] = "zero"
    label: ClassVar[str] = "zero ablation"

    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        return [(hook_point(layer, "z"), _scaled(heads, 0.0, head_dim=2))]

    def separable(self, model: Model) -> bool:
        return True

    def prepare(self, model: Model, batch: PromptBatch | None) -> Ablation:
        _warn_of_folded_biases(model)
        return self


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

    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        def replace(tensor: Activation, hook: Any) -> Activation:
            mean = tensor.mean(2, keepdim=True)
            return torch.where(chosen_heads(heads, tensor, head_dim=2), mean, tensor)

        return [(hook_point(layer, "z" if self.which == "v" else self.which), replace)]

    def separable(self, model: Model) -> bool:
        return self.which == "v" or _is_of_one_head(model, self.which)


def chosen_heads(
    heads: HeadMask, tensor: Float[Tensor, "batch _ _ _"], head_dim: int
) -> Bool[Tensor, "row _ _ _"]:
    """A mask of query heads that broadcasts to a tensor whose heads are in `head_dim`.

    A tensor of keys has KV heads: one is chosen if any query head of its group is.
    """
    count = tensor.shape[head_dim]
    if heads.shape[1] != count:
        heads = heads.reshape(len(heads), count, -1).any(-1)
    shape = [len(heads), 1, 1, 1]
    shape[head_dim] = count
    return heads.reshape(shape).to(tensor.device)


def _is_of_one_head(model: Model, site: str) -> bool:
    """Whether a head's queries or keys, hooked at `site`, act on that head alone.

    Not keys that a group shares; nor, in the OLMo family, what a norm over all heads follows.
    """
    shared = site.endswith("k") and _shares_keys(model)
    over_heads = model.cfg.original_architecture in NORM_OVER_HEADS
    return not (shared or (over_heads and not site.startswith("rot_")))


def _shares_keys(model: Model) -> bool:
    """Whether several query heads share a KV head."""
    return model.cfg.n_key_value_heads not in (None, model.cfg.n_heads)


def _warn_of_folded_biases(model: Model) -> None:
    if is_processed(model):
        logger.warning(
            "This model's weights were processed. If its value biases were folded into the "
            "output bias, zero and scaling ablation leave them behind: load it raw, with "
            "safehead_tl.load_model"
        )


def _scaled(heads: HeadMask, factor: float, head_dim: int) -> Callable[..., Tensor]:
    """Multiplies the chosen heads of a tensor whose heads are in dimension `head_dim`."""

    def scale(tensor: Float[Tensor, "batch _ _ _"], hook: Any) -> Float[Tensor, "batch _ _ _"]:
        return torch.where(chosen_heads(heads, tensor, head_dim), tensor * factor, tensor)

    return scale


def _scaled_scores(heads: HeadMask, factor: float) -> Callable[..., Tensor]:
    """Multiplies the chosen heads' scores; masked ones stay as low as they are.

    A bridge masks with the dtype's lowest number, not with minus infinity: in float16 a small
    factor would make it visible, and a large one turns rows of padding into NaN.
    """

    def scale(scores: Scores, hook: Any) -> Scores:
        return torch.where(
            chosen_heads(heads, scores, head_dim=1) & _visible(scores), scores * factor, scores
        )

    return scale


def _visible(scores: Scores) -> Bool[Tensor, "batch head query key"]:
    visible = scores > torch.finfo(scores.dtype).min / LARGEST_SCALE
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool, device=scores.device)
    if (visible & future.triu(n_keys - n_queries + 1)).any():
        raise SafeheadError(
            "this model's attention scores do not show which keys a query may see, so uniform "
            "attention cannot be had exactly: use via='q', or another ablation"
        )
    return visible


def _uniform_pattern(layer: int, heads: HeadMask) -> list[Hook]:
    """Replaces patterns by A. The masked scores of the same pass say which keys are visible."""
    visible: list[Bool[Tensor, "batch 1 query key"]] = []

    def look(scores: Scores, hook: Any) -> None:
        visible[:] = [_visible(scores[:, :1])]

    def replace(pattern: Scores, hook: Any) -> Scores:
        if not visible:
            raise SafeheadError(
                f"{hook_point(layer, 'pattern')} was hooked without its partner "
                f"{hook_point(layer, 'attn_scores')}: pass on all hooks of ablation_hooks together"
            )
        keys = visible.pop()
        even = keys / keys.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(
            chosen_heads(heads, pattern, head_dim=1), even.to(pattern.dtype), pattern
        )

    return [(hook_point(layer, "attn_scores"), look), (hook_point(layer, "pattern"), replace)]

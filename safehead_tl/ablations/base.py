"""What can be done to a head: ablations as hook functions `(tensor, hook) -> tensor`.

An ablation says, for a layer and a mask of heads, which hook points to hook and with what. The
mask is `[row head]`: each row of a batch can have its own heads ablated, which is how a scan
puts many heads into one pass; a single row stands for all.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safehead_tl.models import Hook, Model, is_processed
from safehead_tl.prompts import PromptBatch

logger = logging.getLogger("safehead_tl")

NORM_OVER_HEADS = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Architectures that normalise the queries and keys of all heads together, after their hooks."""

HeadMask: TypeAlias = Bool[Tensor, "row head"]
Activation: TypeAlias = Float[Tensor, "batch pos head d_head"]
Scores: TypeAlias = Float[Tensor, "batch head query key"]


class Ablation(ABC):
    """Something done to heads. A new one is a frozen dataclass with these and `hooks`.

    Scans are faster if it is also `separable`.

    Attributes:
        name: the short name.
        label: the name in a figure's title.
        tokens_at_once: tokens that `prepare` runs in a pass.
        by_prompt: whether what is done depends on which prompt a row is.
        keeps_patterns: whether a head's own attention stays as it is, because only what is made of
            it is changed: values or outputs.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    tokens_at_once: ClassVar[int] = 0
    by_prompt: ClassVar[bool] = False
    keeps_patterns: ClassVar[bool] = False

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

    def on(self, numbers: Int[Tensor, " batch"]) -> Ablation:
        """The same for rows that are these prompts, by their numbers in what was prepared for."""
        return self

    def bytes_a_prompt(self, config: Any, width: int) -> int:
        """Memory that it holds for each prompt of so many tokens, once it is prepared."""
        return 0

    def describe(self) -> dict[str, Any]:
        """Names and settings, for a result's provenance."""
        return {"name": self.name, "label": self.label, **asdict(self)}  # type: ignore[call-overload]


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


def scaled(heads: HeadMask, factor: float, head_dim: int) -> Callable[..., Tensor]:
    """Multiplies the chosen heads of a tensor whose heads are in dimension `head_dim`."""
    return partial(_scale, heads, factor, head_dim)


def _scale(
    heads: HeadMask, factor: float, head_dim: int, tensor: Float[Tensor, "batch _ _ _"], hook: Any
) -> Float[Tensor, "batch _ _ _"]:
    return torch.where(chosen_heads(heads, tensor, head_dim), tensor * factor, tensor)


def is_of_one_head(model: Model, site: str) -> bool:
    """Whether a head's queries or keys, hooked at `site`, act on that head alone.

    Not keys that a group shares; nor, in the OLMo family, what a norm over all heads follows.
    """
    shared = site.endswith("k") and shares_keys(model)
    over_heads = model.cfg.original_architecture in NORM_OVER_HEADS
    return not (shared or (over_heads and not site.startswith("rot_")))


def shares_keys(model: Model) -> bool:
    """Whether several query heads share a KV head."""
    return model.cfg.n_key_value_heads not in (None, model.cfg.n_heads)


def warn_of_folded_biases(model: Model) -> None:
    """Warns where zero and scaling ablation may leave value biases behind."""
    if is_processed(model):
        logger.warning(
            "This model's weights were processed. If its value biases were folded into the "
            "output bias, zero and scaling ablation leave them behind: load it raw, with "
            "safehead_tl.load_model"
        )

"""Mean ablation: a head's output replaced by its mean over a reference set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations.base import Ablation, Activation, HeadMask, chosen_heads
from safehead_tl.ablations.outputs import TOKENS_PER_PASS, each_output
from safehead_tl.errors import SafeheadError
from safehead_tl.models import Hook, Model, hook_point
from safehead_tl.prompts import (
    PromptBatch,
    Prompts,
    Template,
    describe_template,
    encode,
    prompt_texts,
)


@dataclass(frozen=True)
class MeanAblation(Ablation):
    """Replaces a head's output by its mean over a reference set, at every position.

    The mean is over all tokens of all reference prompts (padding left out), one vector a head.

    Attributes:
        reference: the reference prompts, as texts or as a source that `load_prompts` reads; by
            default those that are being scored.
        template: the template of the reference prompts; by default that of the prompts that are
            being scored; where there are none, as in `ablated`, it has to be named.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> mean = sh.MeanAblation(sh.load_prompts("demo/benign", limit=8), template="auto")
        >>> with sh.ablated(model, "L1H3", mean):
        ...     logits = model(model.to_tokens("how do i bend a crobe"))
    """

    reference: Prompts | None = field(default=None, repr=False)
    template: Template | None = None
    name: ClassVar[str] = "mean"
    label: ClassVar[str] = "mean ablation"
    keeps_patterns: ClassVar[bool] = True
    tokens_at_once: ClassVar[int] = TOKENS_PER_PASS

    def __post_init__(self) -> None:
        if self.reference is not None:
            object.__setattr__(self, "reference", prompt_texts(self.reference, "reference"))
        elif self.template is not None:
            raise SafeheadError("template is that of the reference prompts, and there are none")

    @override
    def separable(self, model: Model) -> bool:
        return True

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        raise SafeheadError(
            "mean ablation needs a reference set here: "
            "MeanAblation(reference=prompts, template=...)"
        )

    @override
    def prepare(self, model: Model, batch: PromptBatch | None) -> Ablation:
        if self.reference is not None:
            template = self.template
            if template is None and batch is not None:
                template = batch.template
            if template is None:
                raise SafeheadError(
                    "which template do the reference prompts have? "
                    "MeanAblation(reference=prompts, template='auto')"
                )
            batch = encode(model, self.reference, template)
        return self if batch is None else FittedMean(batch, _mean_outputs(model, batch))

    @override
    def describe(self) -> dict[str, Any]:
        texts = None if self.reference is None else prompt_texts(self.reference)
        settings = {
            "reference_count": texts and len(texts),
            "reference_hash": texts and hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            **({} if self.template is None else describe_template(self.template)),
        }
        return {"name": self.name, "label": self.label, **settings}


@dataclass(frozen=True)
class FittedMean(Ablation):
    """Mean ablation, with the means at hand."""

    reference: PromptBatch
    mean: Float[Tensor, "layer head d_head"] = field(repr=False)
    name: ClassVar[str] = MeanAblation.name
    label: ClassVar[str] = MeanAblation.label
    keeps_patterns: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        """One for each reference prompt."""
        return len(self.reference.prompts)

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        return [(hook_point(layer, "z"), partial(_replace, heads, self.mean[layer]))]

    @override
    def separable(self, model: Model) -> bool:
        return True

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "label": self.label, "reference": self.reference.describe()}


def _replace(
    heads: HeadMask, mean: Float[Tensor, "head d_head"], z: Activation, hook: Any
) -> Activation:
    return torch.where(chosen_heads(heads, z, head_dim=2), mean.to(z), z)


def _mean_outputs(model: Model, batch: PromptBatch) -> Float[Tensor, "layer head d_head"]:
    """Each head's output, averaged over all tokens of a batch."""
    sums: list[Tensor | float] = [0.0] * model.cfg.n_layers

    def add(layer: int, rows: slice, z: Activation) -> None:
        weight = batch.mask[rows].to(z.device, torch.float32)
        sums[layer] += torch.einsum("bphd,bp->hd", z.float(), weight)

    each_output(model, batch, add)
    # Layers may be on several devices.
    means = torch.stack([torch.as_tensor(total, device=batch.mask.device) for total in sums])
    return means / batch.mask.sum()

"""A head's output replaced by what it is in other prompts, place by place."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations.base import Ablation, Activation, HeadMask, chosen_heads
from safehead_tl.ablations.outputs import TOKENS_PER_PASS, each_output
from safehead_tl.errors import SafeheadError
from safehead_tl.models import Hook, Model, hook_point
from safehead_tl.prompts import (
    Alignment,
    Positions,
    PromptBatch,
    Prompts,
    Span,
    encode,
    prompt_texts,
)

_OF_PROMPTS = (
    "resample ablation replaces outputs in given prompts: use it in scans and last_states, not "
    "where texts are generated, or in ablated and export"
)
LABELS = {
    "random": "resample ablation",
    "paired": "interchange",
    "mean": "mean ablation by position",
}
"""What it is called, by how donors are drawn."""


@dataclass(frozen=True)
class ResampleAblation(Ablation):
    """Replaces a head's output in each prompt by its output in another prompt.

    Unlike zero or a mean, what a head then puts out is something that it does put out (Chan et
    al. 2022, causal scrubbing). The template is aligned with the template, the query by its ends;
    tokens without a counterpart keep their own output.

    It is of given prompts, and so for scans and `last_states`: generated tokens have no
    counterpart.

    Attributes:
        reference: the other prompts, as texts or as a source that `load_prompts` reads.
        draws: which of them: `"random"`, one drawn for each prompt; `"paired"`, the first for the
            first prompt, and so on; `"mean"`, the mean over all, at each place apart.
        positions: where: `"all"`, `"query"` (the query's tokens), `"after"` (the template's behind
            it) or `"last"`.
        seed: of what is drawn.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> harmless = sh.ResampleAblation("demo/benign")
        >>> [str(head) for head, _ in sh.ships(model, prompts, ablation=harmless).top(2)]
        ['L1H3', 'L2H6']
    """

    reference: Prompts = field(repr=False)
    draws: Literal["random", "paired", "mean"] = "random"
    positions: Positions = "all"
    seed: int = 0
    name: ClassVar[str] = "resample"
    tokens_at_once: ClassVar[int] = TOKENS_PER_PASS
    by_prompt: ClassVar[bool] = True
    keeps_patterns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", prompt_texts(self.reference, "reference"))
        if self.draws not in LABELS:
            raise SafeheadError(
                f"draws={self.draws!r} is not known: use 'random', 'paired' or 'mean'"
            )

    @property
    def label(self) -> str:  # type: ignore[override]
        """The name in a figure's title."""
        return LABELS[self.draws]

    @override
    def separable(self, model: Model) -> bool:
        return True

    @override
    def bytes_a_prompt(self, config: Any, width: int) -> int:
        size = torch.empty((), dtype=config.dtype).element_size()
        return int(size * width * config.n_layers * config.n_heads * config.d_head)

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        raise SafeheadError(_OF_PROMPTS)

    @override
    def prepare(self, model: Model, batch: PromptBatch | None) -> Ablation:
        if batch is None:
            raise SafeheadError(_OF_PROMPTS)
        texts, count = prompt_texts(self.reference), len(batch.prompts)
        if self.draws == "paired" and len(texts) != count:
            raise SafeheadError(
                f"{count} prompts and {len(texts)} counterparts: give each prompt its own"
            )
        if self.draws == "random":
            draw = random.Random(self.seed)
            texts = tuple(
                draw.choice([text for text in texts if text != prompt] or texts)
                for prompt in batch.prompts
            )
        donors = encode(model, texts, batch.template)
        alignment = Alignment.of(model, batch, donors, self.positions)
        chosen = (
            [range(len(texts))] * count if self.draws == "mean" else [[n] for n in range(count)]
        )
        return FittedResample(self, donors, *_gathered(model, donors, alignment, chosen))

    @override
    def describe(self) -> dict[str, Any]:
        texts = prompt_texts(self.reference)
        return {
            "name": self.name,
            "label": self.label,
            "reference_count": len(texts),
            "reference_hash": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            "draws": self.draws,
            "positions": self.positions,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class FittedResample(Ablation):
    """Resample ablation of given prompts, with what they get at hand.

    Attributes:
        chosen: what was asked for.
        donors: the other prompts.
        outputs: for each layer, what stands in the place of the heads' outputs.
        where: where it does.
        numbers: which prompts the rows are; `None`: not said yet.
    """

    chosen: ResampleAblation
    donors: PromptBatch
    outputs: list[Float[Tensor, "prompt column head d_head"]] = field(repr=False)
    where: Bool[Tensor, "prompt column"] = field(repr=False)
    numbers: Int[Tensor, " batch"] | None = None
    name: ClassVar[str] = ResampleAblation.name
    by_prompt: ClassVar[bool] = True
    keeps_patterns: ClassVar[bool] = True

    @property
    def label(self) -> str:  # type: ignore[override]
        """The name in a figure's title."""
        return self.chosen.label

    @property
    def passes(self) -> int:
        """One for each of the other prompts."""
        return len(self.donors.prompts)

    @override
    def separable(self, model: Model) -> bool:
        return True

    @override
    def on(self, numbers: Int[Tensor, " batch"]) -> Ablation:
        return replace(self, numbers=numbers)

    @override
    def hooks(self, model: Model, layer: int, heads: HeadMask) -> list[Hook]:
        if self.numbers is None:
            raise SafeheadError(_OF_PROMPTS)
        given = self.outputs[layer], self.where, self.numbers
        return [(hook_point(layer, "z"), partial(_replace, heads, *given))]

    @override
    def describe(self) -> dict[str, Any]:
        return self.chosen.describe()


def _replace(
    heads: HeadMask,
    outputs: Float[Tensor, "prompt column head d_head"],
    where: Bool[Tensor, "prompt column"],
    numbers: Int[Tensor, " batch"],
    z: Activation,
    hook: Any,
) -> Activation:
    first = outputs.shape[1] - z.shape[1]  # where only the last query is run
    here = where[numbers.to(where.device), first:, None, None].to(z.device)
    donated = outputs[numbers.to(outputs.device), first:].to(z)
    return torch.where(chosen_heads(heads, z, head_dim=2) & here, donated, z)


def _gathered(
    model: Model, donors: PromptBatch, alignment: Alignment, chosen: Sequence[Sequence[int]]
) -> tuple[list[Tensor], Tensor]:
    """What each prompt gets, the mean over its donors (`chosen`), and where there is any."""
    config, width = model.cfg, alignment.widths[0]
    several = max(map(len, chosen)) > 1
    shape = len(chosen), width, config.n_heads, config.d_head
    dtype = torch.float32 if several else config.dtype
    sums: list[Tensor | None] = [None] * config.n_layers
    counts = torch.zeros(len(chosen), width)
    # donors of one prompt that are as long, front, middle and end, are taken together
    alike: dict[tuple[int, Span], set[int]] = {}
    for prompt, numbers in enumerate(chosen):
        for number in numbers:
            alike.setdefault((prompt, alignment.others[number]), set()).add(number)
    for (prompt, span), same in alike.items():
        here, _ = alignment.columns(alignment.own[prompt], span)
        counts[prompt, here] += len(same)

    def take(layer: int, rows: slice, z: Activation) -> None:
        total = sums[layer]
        if total is None:
            total = sums[layer] = torch.zeros(shape, dtype=dtype, device=z.device)
        for (prompt, span), same in alike.items():
            some = [number - rows.start for number in same if rows.start <= number < rows.stop]
            if some:
                here, there = alignment.columns(alignment.own[prompt], span)
                total[prompt, here] += z[some][:, there].to(dtype).sum(0)

    each_output(model, donors, take)
    found = [total for total in sums if total is not None]
    if several:
        share = counts.clamp(min=1)[..., None, None]
        found = [(total / share.to(total.device)).to(config.dtype) for total in found]
    return found, (counts > 0).to(donors.mask.device)

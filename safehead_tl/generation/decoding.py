"""How the next token is chosen: greedily, or drawn from the most likely ones by a seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from safehead_tl.errors import SafeheadError

LONGEST = 128
"""Most new tokens unless told otherwise: the paper's."""


@dataclass(frozen=True)
class Decoding:
    """How texts are generated.

    Attributes:
        max_new_tokens: stop after so many tokens; a text also stops at an end-of-sequence token.
            `None`: as in the paper 128, or as many as fit into the model's context.
        top_k: draw from the `top_k` most likely tokens; `None`: always take the most likely one.
            The paper draws from 5.
        temperature: what logits are divided by before drawing.
        samples: texts for each prompt; more than one needs `top_k`.
        seed: of the draws. A prompt's samples depend on the seed and on its place among the
            prompts only, not on batches nor on what is ablated.
    """

    max_new_tokens: int | None = None
    top_k: int | None = None
    temperature: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "samples", "top_k"):
            value = getattr(self, name)
            if value is None and name != "samples":
                continue
            if not (isinstance(value, int) and value >= 1):
                raise SafeheadError(f"{name}={value!r}: give a whole number from 1")
        if not 0 < self.temperature < math.inf:
            raise SafeheadError(f"temperature={self.temperature!r}: give a number above 0")
        if self.samples > 1 and self.top_k is None:
            raise SafeheadError(
                f"samples={self.samples} would all be the same: greedy decoding has one answer. "
                "Draw with top_k=5"
            )
        if self.temperature != 1 and self.top_k is None:
            raise SafeheadError("temperature changes nothing without top_k: draw with top_k=5")

    def fitted(self, room: int, most: int = LONGEST) -> Decoding:
        """The same, with the length that it has where `room` positions are left.

        Raises:
            SafeheadError: if what was asked for does not fit.
        """
        asked = min(most, room) if self.max_new_tokens is None else self.max_new_tokens
        if not 0 < asked <= room:
            raise SafeheadError(
                f"max_new_tokens={asked} does not fit: the longest prompt leaves {room} of the "
                f"model's positions; {f'give {room} or fewer' if room else 'shorten it'}"
            )
        return replace(self, max_new_tokens=asked)

    @property
    def steps(self) -> int:
        """`max_new_tokens`, once it is fitted."""
        assert self.max_new_tokens is not None
        return self.max_new_tokens

    def describe(self) -> dict[str, Any]:
        """As plain values, for provenance."""
        return asdict(self)

    def numbers(self, rows: Sequence[tuple[int, int]]) -> Float64[Tensor, "row step"] | None:
        """The random numbers that rows draw by, one a step; `None` if nothing is drawn.

        Args:
            rows: prompt and sample of each row.
        """
        if self.top_k is None:
            return None
        drawn = []
        for prompt, sample in rows:
            generator = torch.Generator().manual_seed(self.seed_of(prompt, sample))
            drawn.append(torch.rand(self.steps, generator=generator, dtype=torch.float64))
        return torch.stack(drawn)

    def seed_of(self, prompt: int, sample: int) -> int:
        """The seed of one text's draws."""
        digest = hashlib.sha256(f"{self.seed} {prompt} {sample}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def choose(
        self, logits: Float[Tensor, "row vocab"], numbers: Float64[Tensor, " row"] | None
    ) -> Int[Tensor, " row"]:
        """The next token of each row."""
        if self.top_k is None or numbers is None:
            return logits.argmax(-1)
        best = logits.double().topk(min(self.top_k, logits.shape[-1]), dim=-1)
        upto = (best.values / self.temperature).softmax(-1).cumsum(-1)
        place = (upto < numbers[:, None].to(upto.device)).sum(-1, keepdim=True)
        return best.indices.gather(-1, place.clamp(max=best.indices.shape[-1] - 1))[:, 0]

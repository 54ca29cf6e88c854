"""Ships as a measure of states: how far the next token's distribution moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl._memory import Passes, even_slices
from safehead_tl._models import Model
from safehead_tl._readout import next_token_log_probs

BYTES_AT_ONCE = 2**28
"""Most memory for distributions over the vocabulary: about four of 8 bytes a token are alive."""


@dataclass(frozen=True)
class Divergence:
    """KL(original ‖ ablated) of the next token (paper Eq. 9).

    Attributes:
        model: the model.
        original: the original model's last states.
        passes: how many rows a pass may have.
        budget: bytes to use beyond the model's weights.
    """

    model: Model
    original: Float[Tensor, "prompt d_model"]
    passes: Passes
    budget: int

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "head prompt d_model"]
    ) -> Float[Tensor, "prompt head"]:
        rows, found = self._rows, []
        for prompts in even_slices(len(self.original), rows):
            before = self._before(prompts)
            likely = before.exp()
            columns = []
            for heads in even_slices(len(states), max(1, rows // len(before))):
                some = states[heads, prompts]
                after = next_token_log_probs(self.model, some.flatten(0, 1))
                after = after.unflatten(0, some.shape[:2])
                columns.append((likely * (before - after)).sum(-1))
            found.append(torch.cat(columns).T)
        return torch.cat(found)

    @property
    def _rows(self) -> int:
        """How many distributions are held at once."""
        fitting = min(BYTES_AT_ONCE, self.budget // 4) // (32 * self.model.cfg.d_vocab)
        return max(1, min(fitting, self.passes.rows))

    def _before(self, prompts: slice) -> Float[Tensor, "prompt vocab"]:
        """The original's log-probabilities: held if they are few, otherwise computed each time."""
        if len(self.original) > self._rows:
            return next_token_log_probs(self.model, self.original[prompts])
        return self._held[prompts]

    @cached_property
    def _held(self) -> Float[Tensor, "prompt vocab"]:
        return next_token_log_probs(self.model, self.original)

"""Ships as a measure of states: how far the next token's distribution moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.models import Model, next_token_log_probs
from safehead_tl.scan import Linearisation, Passes, Screening, even_slices

PROMPTS_AT_MOST = 2**20
"""Keeps the draws of one seed apart from those of the next."""

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
    power: ClassVar[int] = 1

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "head prompt d_model"]
    ) -> Float[Tensor, "prompt head"]:
        """Ships of each head on each prompt, in nats."""
        rows, found = self._rows, []
        for prompts in even_slices(len(self.original), rows):
            before = self._before(prompts)
            likely = before.exp()
            columns = []
            for heads in even_slices(len(states), max(1, rows // len(before))):
                some = states[heads, prompts]
                after = next_token_log_probs(self.model, some.flatten(0, 1))
                after = after.unflatten(0, some.shape[:2])
                # no divergence is below 0, but rounding is: by some 1e-16 where nothing moves
                columns.append((likely * (before - after)).sum(-1).clamp(min=0))
            found.append(torch.cat(columns).T)
        return torch.cat(found)

    def screened(
        self,
        states: Float[Tensor, "prompt d_model"],
        linear: Linearisation,
        screening: Screening,
    ) -> Float[Tensor, "layer head"]:
        """Estimates every head's mean over prompts from first-order changes of the logits.

        To second order in the change Δo of the logits, KL(original ‖ ablated) grows by
        (p - p_original)·Δo + ½ Δoᵀ F Δo, with F = diag(p) - p pᵀ of the run that heads are ablated
        from. The square is estimated with probes u = √p∘ω - p (√p·ω), ω normal: uuᵀ is F on
        average.

        Args:
            states: the last states of the run that heads are ablated from.
            linear: first-order changes of the last states.
            screening: how many probes, and their seed.
        """
        draws = [  # one for each prompt: what is drawn must not depend on how prompts are cut up
            torch.Generator().manual_seed(PROMPTS_AT_MOST * screening.seed + prompt)
            for prompt in range(len(states))
        ]
        sloping = int(bool(linear.baseline.group))  # without a group the divergence is at its least
        pulled = [
            self._pulled(states[part], self._before(part), screening.probes, draws[part])
            for part in even_slices(len(states), self._rows)
        ]
        directions = torch.cat([found for _, found in pulled], 1)[1 - sloping :]
        effects = linear.effects(directions).double()
        already = torch.cat([divergence for divergence, _ in pulled]).mean().cpu()
        squares = effects[sloping:].square().mean(0) / 2
        return already + (effects[:sloping].sum(0) + squares).mean(0)

    def pull(
        self, states: Float[Tensor, "prompt d_model"], prompts: slice
    ) -> Float[Tensor, "1 prompt d_model"]:
        """The divergence's gradient at the last states of some prompts."""
        before = next_token_log_probs(self.model, self.original[prompts]).exp()
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            after = next_token_log_probs(self.model, at)
        return torch.autograd.grad(after, at, -before)[0][None]

    def _pulled(
        self,
        states: Float[Tensor, "prompt d_model"],
        before: Float[Tensor, "prompt vocab"],
        probes: int,
        draws: Sequence[torch.Generator],
    ) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "direction prompt d_model"]]:
        """The divergence from the original, its gradient, and probes of its curvature."""
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            after = next_token_log_probs(self.model, at)
        now, original = after.detach().exp(), before.exp()
        cotangents = [now - original]
        for _ in range(probes):
            each = [torch.randn(now.shape[1:], generator=draw, dtype=now.dtype) for draw in draws]
            noise = torch.stack(each).to(now.device)
            root = now.sqrt()
            cotangents.append(root * noise - now * (root * noise).sum(-1, keepdim=True))
        last = len(cotangents)
        directions = [
            torch.autograd.grad(after, at, cotangent, retain_graph=number < last)[0]
            for number, cotangent in enumerate(cotangents, 1)
        ]
        return (original * (before - after.detach())).sum(-1), torch.stack(directions)

    @property
    def _rows(self) -> int:
        """How many distributions are held at once."""
        fitting = min(BYTES_AT_ONCE, self.budget // 4) // (32 * self.model.cfg.d_vocab)
        return max(1, min(fitting, self.passes.rows))

    @torch.no_grad()
    def _before(self, prompts: slice) -> Float[Tensor, "prompt vocab"]:
        """The original's log-probabilities: held if they are few, otherwise computed each time."""
        if len(self.original) > self._rows:
            return next_token_log_probs(self.model, self.original[prompts])
        return self._held[prompts]

    @cached_property
    def _held(self) -> Float[Tensor, "prompt vocab"]:
        return next_token_log_probs(self.model, self.original)

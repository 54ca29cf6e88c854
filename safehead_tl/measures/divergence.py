"""Ships as a measure of states: how far the next token's distribution moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.models import Model, next_token_log_probs
from safehead_tl.scan import Beside, Linearisation, Passes, Screening, even_slices

PROMPTS_AT_MOST = 2**20
"""Keeps the draws of one seed apart from those of the next."""

BYTES_AT_ONCE = 2**28
"""Most memory for distributions over the vocabulary."""

ALIVE, PULLED = 48, 104
"""Bytes a token of the vocabulary that are alive for each distribution, and for a gradient's."""


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
    signed: ClassVar[bool] = False
    measure: ClassVar[str] = "ships"
    unit: ClassVar[str] = "nats"

    @staticmethod
    def beside(screening: Screening | None, config: Any) -> Beside:
        """What it takes: distributions of a prompt, and the scores of each."""
        scores = config.n_layers * config.n_heads * 8
        if screening is None:
            return Beside(ALIVE * config.d_vocab, scores)
        return Beside(PULLED * config.d_vocab, 3 * scores, screening.probes + 1)

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "head prompt d_model"]
    ) -> Float[Tensor, "prompt head"]:
        """Ships of each head on each prompt, in nats."""
        rows, found = self._rows(ALIVE), []
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
        sloping = int(bool(linear.baseline.group))  # without a group the divergence is at its least
        already = torch.zeros(len(states), dtype=torch.float64)

        def directions(part: slice) -> Tensor:
            found = []
            for inside in even_slices(part.stop - part.start, self._rows(PULLED)):
                some = slice(part.start + inside.start, part.start + inside.stop)
                draws = [  # one for each prompt: the same however prompts are cut up
                    torch.Generator().manual_seed(PROMPTS_AT_MOST * screening.seed + prompt)
                    for prompt in range(some.start, some.stop)
                ]
                before = self._before(some)
                now, pulled = self._pulled(states[some], before, screening.probes, draws)
                already[some] = now.cpu()
                found.append(pulled[1 - sloping :])
            return torch.cat(found, 1)

        def total(effects: Tensor) -> Tensor:
            squares = effects[sloping:].double().square().mean(0) / 2
            return (effects[:sloping].double().sum(0) + squares).sum(0)

        found = linear.by_parts(screening.probes + sloping, directions, total)
        return already.mean() + torch.stack(found).sum(0) / len(states)

    def pull(
        self, states: Float[Tensor, "prompt d_model"], prompts: slice
    ) -> Float[Tensor, "1 prompt d_model"]:
        """The divergence's gradient at the last states of some prompts."""
        original, found = self.original[prompts], list[Tensor]()
        for some in even_slices(len(states), self._rows(PULLED)):
            before = next_token_log_probs(self.model, original[some]).exp()
            at = states[some].detach().requires_grad_()
            with torch.enable_grad():
                after = next_token_log_probs(self.model, at)
            found += torch.autograd.grad(after, at, -before)
        return torch.cat(found)[None]

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
        directions = [*torch.autograd.grad(after, at, now - original, retain_graph=True)]
        for _ in range(probes):
            each = [torch.randn(now.shape[1:], generator=draw, dtype=now.dtype) for draw in draws]
            noise = torch.stack(each).to(now.device) * now.sqrt()
            noise -= now * noise.sum(-1, keepdim=True)
            directions += torch.autograd.grad(after, at, noise, retain_graph=True)
        return (original * (before - after.detach())).sum(-1), torch.stack(directions)

    def _rows(self, a_token: int) -> int:
        """How many distributions are held at once, of which each takes so many bytes a token."""
        fitting = min(BYTES_AT_ONCE, self.budget // 4) // (a_token * self.model.cfg.d_vocab)
        return max(1, min(fitting, self.passes.rows))

    @torch.no_grad()
    def _before(self, prompts: slice) -> Float[Tensor, "prompt vocab"]:
        """The original's log-probabilities: held if they are few, otherwise computed each time."""
        if len(self.original) > self._rows(ALIVE):
            return next_token_log_probs(self.model, self.original[prompts])
        return self._held[prompts]

    @cached_property
    def _held(self) -> Float[Tensor, "prompt vocab"]:
        return next_token_log_probs(self.model, self.original)

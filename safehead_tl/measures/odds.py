"""Refusal log-odds as a measure of states: towards refusal or away from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.measures.openings import Openings
from safehead_tl.models import Model, next_token_logits
from safehead_tl.scan import Beside, Linearisation, Screening


@dataclass(frozen=True)
class LogOdds:
    """How far refusal log-odds fall: log P(refusal openings) - log P(compliance openings).

    The sums over the vocabulary cancel, so only the openings are unembedded.

    Attributes:
        model: the model.
        openings: first tokens of refusals and of compliant answers.
        original: the original model's last states.
    """

    model: Model
    openings: Openings
    original: Float[Tensor, "prompt d_model"]
    power: ClassVar[int] = 1
    signed: ClassVar[bool] = True
    measure: ClassVar[str] = "refusal_log_odds"
    unit: ClassVar[str] = "nats"

    @staticmethod
    def beside(openings: Openings, screening: Screening | None, config: Any) -> Beside:
        """What it takes: scores, and to screen one gradient."""
        if not isinstance(openings, Openings):
            raise SafeheadError(
                f"openings={openings!r}: give Openings, such as Openings.of_answers(model, "
                "harmful, harmless)"
            )
        scores = config.n_layers * config.n_heads * 8
        return Beside(0, scores) if screening is None else Beside(0, 3 * scores, 1)

    def of(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The log-odds at last states, in nats."""
        refusal, compliance = self._tokens
        logits = next_token_logits(self.model, states, torch.cat([refusal, compliance]))
        first, second = logits.split([len(refusal), len(compliance)], -1)
        return first.logsumexp(-1) - second.logsumexp(-1)

    @cached_property
    def _tokens(self) -> tuple[Tensor, Tensor]:
        return self.openings.on(self.model)

    @cached_property
    def before(self) -> Float[Tensor, " prompt"]:
        """The original model's log-odds."""
        with torch.no_grad():
            return self.of(self.original)

    @torch.no_grad()
    def __call__(
        self, states: Float[Tensor, "head prompt d_model"]
    ) -> Float[Tensor, "prompt head"]:
        """How far they fall with each head ablated, on each prompt."""
        after = self.of(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return (self.before - after).T

    def screened(
        self,
        states: Float[Tensor, "prompt d_model"],
        linear: Linearisation,
        screening: Screening,
    ) -> Float[Tensor, "layer head"]:
        """Every head's mean over prompts, from first-order changes of the last states.

        Args:
            states: the last states of the run that heads are ablated from.
            linear: first-order changes of the last states.
            screening: not used: one direction tells all.
        """
        slope = self.pull(states, slice(None))
        with torch.no_grad():
            already = (self.before - self.of(states)).mean().cpu()
        changes = linear.by_parts(1, lambda part: slope[:, part], lambda some: some[0].sum(0))
        return already + torch.stack(changes).sum(0).double() / len(states)

    def pull(
        self, states: Float[Tensor, "prompt d_model"], prompts: slice
    ) -> Float[Tensor, "1 prompt d_model"]:
        """The gradient of their fall at the last states of some prompts."""
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            fall = -self.of(at).sum()
        return torch.autograd.grad(fall, at)[0][None]

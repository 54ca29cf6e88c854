"""Generalized Ships as a measure of states: how far they turn away from the original ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.measures.angles import left_subspace, principal_angles, require_rank, require_span
from safehead_tl.models import Model, Site, final_state, require_site
from safehead_tl.scan import Beside, Linearisation, Screening, Search


@dataclass(frozen=True)
class Rotation:
    """The rotation of the prompts' states away from those of the original model (paper Eq. 11).

    Attributes:
        model: the model.
        rank: how many left singular vectors.
        centre: subtract the mean state first.
        site: where the states are read.
        states: the original model's last states.
        original: their left singular vectors.
        budget: bytes to use beyond the model's weights.
    """

    model: Model
    rank: int
    centre: bool
    site: Site
    states: Float[Tensor, "prompt d_model"]
    original: Float[Tensor, "prompt rank"]
    budget: int
    power: ClassVar[int] = 2
    signed: ClassVar[bool] = False

    @staticmethod
    def beside(rank: int, screening: Screening | None, config: Any) -> Beside:
        """What it takes: to screen, directions, changes along them, and a layer's in float64."""
        if screening is None:
            return Beside()
        directions = screening.directions + (rank if isinstance(rank, int) else 1)
        changes = 8 * config.n_layers * config.n_heads + 40 * config.n_heads
        return Beside(0, directions * (changes + 8 * config.d_model), directions)

    @classmethod
    def of(cls, search: Search, rank: int, centre: bool, site: Site) -> Rotation:
        """The rotation away from a search's original run."""
        with torch.no_grad():
            states = final_state(search.model, search.original, site)
        require_span(states, rank, centre)
        original = left_subspace(states, rank, centre)
        return cls(search.model, rank, centre, site, search.original, original, search.plan.budget)

    @torch.no_grad()
    def __call__(self, states: Float[Tensor, "head prompt d_model"]) -> Float[Tensor, "1 head"]:
        """Generalized Ships of each head, in radians."""
        some = max(1, self.budget // 4 // (3 * 8 * states[0].numel()))
        found = []
        for heads in states.split(some):
            final = final_state(self.model, heads, self.site)
            ablated = left_subspace(final, self.rank, self.centre)
            found.append(principal_angles(self.original, ablated).sum(-1))
        return torch.cat(found)[None]

    def screened(
        self,
        states: Float[Tensor, "prompt d_model"],
        linear: Linearisation,
        screening: Screening,
    ) -> Float[Tensor, "layer head"]:
        """Estimates every head's rotation from first-order changes of the states.

        Changes are followed along the first `rank` right singular vectors of the states, and some
        more; in the space that these span, the rotation itself is exact.

        Args:
            states: the last states of the run that heads are ablated from.
            linear: first-order changes of the last states.
            screening: how many directions beyond the rank.
        """
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            read = final_state(self.model, at, self.site)
        final = read.detach().double()
        about = final - final.mean(0) if self.centre else final
        _, _, right = torch.linalg.svd(about.cpu(), full_matrices=False)
        right = right[: self.rank + screening.directions]
        directions = [
            torch.autograd.grad(
                read, at, vector.to(read).expand_as(read), retain_graph=number < len(right)
            )[0]
            for number, vector in enumerate(right, 1)
        ]
        final, found = final.cpu() @ right.T, []
        for changes in linear.effects(torch.stack(directions)).unbind(2):
            stack = final + changes.double().permute(2, 1, 0)
            ablated = left_subspace(stack, self.rank, self.centre)
            found.append(principal_angles(self.original, ablated).sum(-1))
        return torch.stack(found)

    def pull(
        self, states: Float[Tensor, "prompt d_model"], prompts: slice
    ) -> Float[Tensor, "1 prompt d_model"]:
        """The gradient of how far some prompts' states have moved: half the square, on average."""
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            moved = final_state(self.model, at, self.site)
        before = final_state(self.model, self.states[prompts], self.site)
        return torch.autograd.grad(moved, at, moved.detach() - before.detach())[0][None]


def rotation_settings(search: Search, rank: int, centre: bool, site: Site) -> dict[str, Any]:
    """What generalized Ships is told, checked, for a result's provenance."""
    require_rank(rank, len(set(search.batch.prompts)), centre)
    require_site(search.model, site)
    return {"rank": rank, "centre": centre, "site": site}

"""Generalized Ships as a measure of states: how far they turn away from the original ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.measures.angles import left_subspace, principal_angles, require_rank, require_span
from safehead_tl.models import Model, Site, final_state, require_site
from safehead_tl.scan import Linearisation, Screening, Search


@dataclass(frozen=True)
class Rotation:
    """The rotation of the prompts' states away from those of the original model (paper Eq. 11).

    Attributes:
        model: the model.
        rank: how many left singular vectors.
        centre: subtract the mean state first.
        site: where the states are read.
        original: the original states' left singular vectors.
        budget: bytes to use beyond the model's weights.
    """

    model: Model
    rank: int
    centre: bool
    site: Site
    original: Float[Tensor, "prompt rank"]
    budget: int

    @classmethod
    def of(cls, search: Search, rank: int, centre: bool, site: Site) -> Rotation:
        """The rotation away from a search's original run."""
        with torch.no_grad():
            states = final_state(search.model, search.original, site)
        require_span(states, rank, centre)
        original = left_subspace(states, rank, centre)
        return cls(search.model, rank, centre, site, original, search.plan.budget)

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
    ) -> Float[Tensor, "order layer head"]:
        """Estimates every head's rotation from first-order changes of the states.

        Changes are followed along the first `rank` right singular vectors of the states, and some
        more; in the space that these span, the rotation itself is exact. A second order to look in
        is how far the states move there, turning or not: what moves them far may turn them yet,
        to second order.

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
        changes = linear.effects(torch.stack(directions)).double()
        stack = final.cpu() @ right.T + changes.permute(2, 3, 1, 0)
        ablated = left_subspace(stack, self.rank, self.centre)
        return torch.stack(
            [principal_angles(self.original, ablated).sum(-1), changes.square().sum((0, 1)).sqrt()]
        )


def rotation_settings(search: Search, rank: int, centre: bool, site: Site) -> dict[str, Any]:
    """What generalized Ships is told, checked, for a result's provenance."""
    require_rank(rank, len(set(search.batch.prompts)), centre)
    require_site(search.model, site)
    return {"rank": rank, "centre": centre, "site": site}

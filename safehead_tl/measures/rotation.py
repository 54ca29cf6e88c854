"""Generalized Ships as a measure of states: how far they turn away from the original ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.measures.angles import (
    LEGACY,
    Reading,
    angles_between,
    require_rank,
    require_span,
    subspace,
)
from safehead_tl.models import Model, Site, final_state, require_site
from safehead_tl.scan import Beside, Linearisation, Screening, Search


@dataclass(frozen=True)
class Rotation:
    """The rotation of the prompts' states away from those of the original model (paper Eq. 11).

    Attributes:
        model: the model.
        rank: how many singular vectors.
        centre: subtract the mean state first.
        site: where the states are read.
        states: the original model's last states.
        original: their singular vectors.
        budget: bytes to use beyond the model's weights.
        reading: which vectors, and how their angles are summed.
    """

    model: Model
    rank: int
    centre: bool
    site: Site
    states: Float[Tensor, "prompt d_model"]
    original: Float[Tensor, "axis rank"]
    budget: int
    reading: Reading = "left"
    power: ClassVar[int] = 2
    signed: ClassVar[bool] = False

    @staticmethod
    def beside(rank: int, reading: Reading, screening: Screening | None, config: Any) -> Beside:
        """What it takes: to screen, directions, changes along them, and a layer's in float64."""
        if screening is None:
            return Beside()
        directions = screening.directions + (rank if isinstance(rank, int) else 1)
        directions += screening.probes if reading.startswith("right") else 0
        changes = 8 * config.n_layers * config.n_heads + 40 * config.n_heads
        return Beside(0, directions * (changes + 8 * config.d_model), directions)

    @classmethod
    def of(
        cls, search: Search, rank: int, centre: bool, site: Site, reading: Reading = "left"
    ) -> Rotation:
        """The rotation away from a search's original run."""
        model, first = search.model, search.original
        with torch.no_grad():
            states = final_state(model, first, site)
        require_span(states, rank, centre)
        original = subspace(states, rank, centre, reading)
        return cls(model, rank, centre, site, first, original, search.plan.budget, reading)

    @property
    def measure(self) -> str:
        """What a result is called: not generalized Ships where it is none."""
        return "legacy_dim0" if self.reading == LEGACY else "generalized_ships"

    @property
    def unit(self) -> str:
        """What scores are in: the released code's are in degrees."""
        return "degrees" if self.reading == LEGACY else "radians"

    @torch.no_grad()
    def __call__(self, states: Float[Tensor, "head prompt d_model"]) -> Float[Tensor, "1 head"]:
        """Generalized Ships of each head, in `unit`."""
        copies = 5 if self.reading.startswith("right") else 3
        some = max(1, self.budget // 4 // (copies * 8 * states[0].numel()))
        found = []
        for heads in states.split(some):
            final = final_state(self.model, heads, self.site)
            found.append(self._score(self.original, final))
        return torch.cat(found)[None]

    def _score(
        self, original: Float[Tensor, "axis rank"], states: Float[Tensor, "*stack prompt width"]
    ) -> Float[Tensor, "*stack"]:
        ablated = subspace(states, self.rank, self.centre, self.reading)
        score = angles_between(original, ablated, self.reading).sum(-1)
        return score.rad2deg() if self.reading == LEGACY else score

    def screened(
        self,
        states: Float[Tensor, "prompt d_model"],
        linear: Linearisation,
        screening: Screening,
    ) -> Float[Tensor, "layer head"]:
        """Estimates every head's rotation from first-order changes of the states.

        Changes are followed along the first `rank` right singular vectors of the states, and some
        more; in the space that these span, the rotation itself is exact. Right vectors also turn
        out of that space: the rest of it is seen by random directions at right angles, which keep
        squares on average, and all of them once there are as many as the model is wide.

        Args:
            states: the last states of the run that heads are ablated from.
            linear: first-order changes of the last states.
            screening: how many directions beyond the rank, and how many random ones.
        """
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            read = final_state(self.model, at, self.site)
        final = read.detach().double()
        about = final - final.mean(0) if self.centre else final
        _, _, right = torch.linalg.svd(about.cpu(), full_matrices=False)
        right = right[: self.rank + screening.directions]
        original = self.original
        if self.reading == LEGACY:
            right = torch.eye(1, final.shape[1], dtype=final.dtype)
        elif self.reading.startswith("right"):
            draw = torch.Generator().manual_seed(screening.seed)
            rest = final.shape[1] - len(right)
            size = min(screening.probes, rest), final.shape[1]
            noise = torch.randn(size, generator=draw, dtype=final.dtype)
            apart, _ = torch.linalg.qr((noise - noise @ right.T @ right).T)
            right = torch.cat([right, apart.T * (rest / max(1, size[0])) ** 0.5])
            with torch.no_grad():
                before = final_state(self.model, self.states, self.site).double().cpu()
            original = subspace(before @ right.T, self.rank, self.centre, self.reading)
        directions = [
            torch.autograd.grad(
                read, at, vector.to(read).expand_as(read), retain_graph=number < len(right)
            )[0]
            for number, vector in enumerate(right, 1)
        ]
        final, found = final.cpu() @ right.T, []
        for changes in linear.effects(torch.stack(directions)).unbind(2):
            stack = final + changes.double().permute(2, 1, 0)
            found.append(self._score(original, stack))
        return torch.stack(found)

    def pull(
        self, states: Float[Tensor, "prompt d_model"], prompts: slice
    ) -> Float[Tensor, "1 prompt d_model"]:
        """The gradient of how far some prompts' states have moved: half the square, on average."""
        at = states.detach().requires_grad_()
        with torch.enable_grad():
            moved = final_state(self.model, at, self.site)
        before = final_state(self.model, self.states[prompts], self.site)
        far = moved.detach() - before.detach()
        if self.reading == LEGACY:
            far[:, 1:] = 0
        return torch.autograd.grad(moved, at, far)[0][None]


def rotation_settings(
    search: Search, rank: int, centre: bool, site: Site, reading: Reading
) -> dict[str, Any]:
    """What generalized Ships is told, checked, for a result's provenance."""
    require_rank(rank, len(set(search.batch.prompts)), centre, reading, search.model.cfg.d_model)
    require_site(search.model, site)
    if reading == LEGACY and site != "final_norm":
        raise SafeheadError(f"reading={LEGACY!r} reads states after the final norm: leave out site")
    return {"rank": rank, "centre": centre, "site": site, "reading": reading}

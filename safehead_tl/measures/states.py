"""The prompts' last states with heads ablated and without: what generalized Ships compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.measures.angles import (
    Reading,
    angles_between,
    require_rank,
    require_span,
    subspace,
)
from safehead_tl.models import Model, Site, final_state, require_site
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import Provenance, Saved, figures
from safehead_tl.scan import Baseline, Run, Search, check_run

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class LastStates(Saved):
    """Each prompt's last state, before and after heads were ablated together.

    Attributes:
        original: the states with nothing ablated, on the CPU.
        ablated: the states with `heads` ablated.
        heads: the ablated heads.
        provenance: what they were computed from; `settings` holds the site.
    """

    original: Float[Tensor, "prompt d_model"]
    ablated: Float[Tensor, "prompt d_model"]
    heads: tuple[Head, ...]
    provenance: Provenance

    def __repr__(self) -> str:
        prompts, size = self.original.shape
        heads = ", ".join(map(str, self.heads))
        return f"<LastStates: {prompts} prompts, {size} dimensions, {heads} ablated>"

    def angles(
        self, rank: int = 1, centre: bool = False, reading: Reading = "left"
    ) -> Float[Tensor, rank]:
        """Principal angles between the original states' subspace and the ablated ones'.

        Both are spanned by the first `rank` left singular vectors, as in `generalized_ships`,
        which is the sum of these angles.

        Args:
            rank: how many singular vectors.
            centre: subtract the mean state first.
            reading: as in `generalized_ships`.

        Returns:
            Angles in radians, from 0 to pi/2, in float64: ascending, or nested, one for each r.

        Raises:
            SafeheadError: if `rank` is too large for the number of different prompts, or for the
                directions in which the states differ.
        """
        different = self.provenance.settings["different_prompts"]
        require_rank(rank, different, centre, reading, self.original.shape[1])
        require_span(self.original, rank, centre)
        first, second = (
            subspace(states, rank, centre, reading) for states in (self.original, self.ablated)
        )
        return angles_between(first, second, reading)

    def spectrum(self, rank: int | None = None, centre: bool = False) -> go.Figure:
        """Draws the principal angles, in degrees and radians.

        Args:
            rank: how many; by default 10, or as many as the prompts allow.
            centre: subtract the mean state first.

        Raises:
            SafeheadError: as `angles`.
        """
        return figures.spectrum_figure(self, self._most(centre) if rank is None else rank, centre)

    def plane(
        self, other: LastStates | None = None, *, names: tuple[str, str] = ("harmful", "harmless")
    ) -> go.Figure:
        """Draws the states in the two first principal components of the original ones.

        Each prompt is a line from its original state to its ablated one.

        Args:
            other: the same heads ablated on other prompts, such as harmless ones. The components
                are then those of both sets' original states together.
            names: what the two sets of prompts are; without `other` none is shown.

        Raises:
            SafeheadError: if there are fewer than 3 prompts or all states lie on a line, or
                `other` is of another model, site, ablation or other heads.
        """
        return figures.plane_figure(self, other, names)

    def _most(self, centre: bool) -> int:
        """How many angles a figure shows unless it is told."""
        states = self.original.double()
        values = torch.linalg.svdvals(states - states.mean(0) if centre else states)
        span = int((values > 1e-6 * values[0]).sum())
        different = int(self.provenance.settings["different_prompts"])
        return max(1, min(10, span, different - (2 if centre else 1)))

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        header = {
            "heads": [str(head) for head in self.heads],
            "provenance": self.provenance.to_dict(),
        }
        return {"original": self.original, "ablated": self.ablated}, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> LastStates:
        heads = tuple(Head.parse(head) for head in header["heads"])
        provenance = Provenance(**header["provenance"])
        return cls(tensors["original"], tensors["ablated"], heads, provenance)


def last_states(
    model: Model,
    prompts: Prompts,
    heads: HeadsLike,
    *,
    ablation: str | Ablation = "undifferentiated",
    template: Template = "auto",
    site: Site = "final_norm",
    run: Run = Run(),
) -> LastStates:
    """Takes the last token's state of each prompt, without ablation and with heads ablated.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`.
        heads: the heads that are ablated together.
        ablation: an ablation or its name.
        template: as in `ships`.
        site: `"final_norm"` (after the final norm with its weight) or `"resid_post"` (before it).
        run: how it runs; two passes leave no pieces to keep, so without `run_dir`.

    Returns:
        Both stacks of states, in the model's dtype. Costs two passes of each prompt.

    Raises:
        SafeheadError: for prompts, template, ablation, heads, site or memory that cannot be used,
            or states that come out as no finite numbers.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> states = sh.last_states(model, prompts, ["L1H3", "L2H6"])
        >>> states
        <LastStates: 4 prompts, 48 dimensions, L1H3, L2H6 ablated>
        >>> round(float(states.angles()[0]), 2)  # radians
        0.73
    """
    check_run(run, keeping_nothing="last_states")
    search = Search.start(model, prompts, template, ablation, run)
    chosen = parse_heads(heads, *search.shape)
    if not chosen:
        raise SafeheadError("no heads were given to ablate")
    require_site(model, site)
    original = search.original
    hooked = Baseline(
        model, search.batch, search.prepared, chosen, search.plan, search.passes, search.ledger.cost
    )
    ablated = search.passes.fitted(hooked.last)
    if not ablated.isfinite().all():
        raise SafeheadError(
            f"with {', '.join(map(str, chosen))} ablated the states are not finite numbers: does "
            "the model overflow? Load it with dtype='bfloat16' or 'float32'"
        )
    with torch.no_grad():
        read = [final_state(model, states, site).cpu() for states in (original, ablated)]
    settings = {
        "heads": [str(head) for head in chosen],
        "site": site,
        "different_prompts": len(set(search.batch.prompts)),
    }
    return LastStates(read[0], read[1], chosen, search.provenance(settings))

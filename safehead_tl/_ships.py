"""Ships: how far the model's answer moves when one head is ablated.

Per query it is a divergence of next-token distributions (paper Eq. 9); for a data set a rotation
of the space that the prompts' last states span (Eq. 11).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl._ablation import Ablation, resolve_ablation
from safehead_tl._angles import left_subspace, principal_angles, require_rank
from safehead_tl._errors import SafeheadError
from safehead_tl._heads import Head, HeadLike, parse_heads
from safehead_tl._models import (
    Model,
    Site,
    check_model,
    describe,
    final_state,
    next_token_log_probs,
    require_site,
)
from safehead_tl._provenance import Provenance
from safehead_tl._results import HeadScores
from safehead_tl._scan import Baseline, Cost, run_baseline, scan
from safehead_tl._tokens import PromptBatch, encode

ROWS_PER_UNEMBEDDING = 256


def ships(
    model: Model,
    prompts: Sequence[str],
    *,
    template: str = "paper",
    ablation: str | Ablation = "undifferentiated",
    heads: Iterable[HeadLike] | None = None,
    group: Iterable[HeadLike] = (),
    max_rows: int | None = None,
    progress: bool = True,
) -> HeadScores:
    """Scores heads by how far ablating each moves the next-token distribution (paper Eq. 9).

    Ships is KL(original ‖ ablated) at the last prompt token over the full vocabulary, in nats. It
    has no sign: it says that the answer moves, not where to.

    Args:
        model: a `HookedTransformer`, as `load_model` gives it.
        prompts: the queries.
        template: `"direct"`, `"paper"`, `"chat"` or a text with `{query}`.
        ablation: an ablation or its name.
        heads: the heads to score; by default all.
        group: heads that are ablated together with each scored one.
        max_rows: most (head, prompt) pairs in one pass; lower it when memory runs out.
        progress: show progress bars.

    Returns:
        Scores in nats, `values` averaged over prompts and `per_prompt`. Costs about
        (n_layers + 1) / 2 forward passes of one layer per head and prompt.

    Raises:
        SafeheadError: for prompts, template, ablation or heads that cannot be used, or if a
            score comes out as no finite number.
    """
    search = Search.start(model, prompts, template, ablation, max_rows, progress)
    original = next_token_log_probs(model, search.original.last)

    def measure(
        states: Float[Tensor, "head prompt d_model"],
    ) -> Float[Tensor, "prompt head"]:
        return _divergence(model, original, states)

    chosen = parse_heads(group, *search.shape)
    per_prompt = search.score(measure, heads, chosen, "ships")
    settings = {"group": [str(head) for head in chosen]}
    return HeadScores(
        measure="ships",
        unit="nats",
        values=per_prompt.mean(0),
        per_prompt=per_prompt,
        group=chosen,
        provenance=search.provenance(settings),
    )


def generalized_ships(
    model: Model,
    prompts: Sequence[str],
    *,
    rank: int = 1,
    centre: bool = False,
    site: Site = "final_norm",
    template: str = "paper",
    ablation: str | Ablation = "undifferentiated",
    heads: Iterable[HeadLike] | None = None,
    group: Iterable[HeadLike] = (),
    max_rows: int | None = None,
    progress: bool = True,
) -> HeadScores:
    """Scores heads by how far ablating each turns the prompts' states as a set (paper Eq. 11).

    The last tokens' states of all prompts are stacked; the score is the sum of the principal
    angles, in radians, between the first `rank` left singular vectors of the original stack and
    of the ablated one. The defaults are what the paper's code does, with exact small angles.

    Args:
        model: a `HookedTransformer`, as `load_model` gives it.
        prompts: the queries; more than `rank`.
        rank: how many singular vectors. Uncentred, the first one is nearly the constant vector.
        centre: subtract the mean state first.
        site: `"final_norm"` (after the final norm with its weight) or `"resid_post"` (before it).
        template: `"direct"`, `"paper"`, `"chat"` or a text with `{query}`.
        ablation: an ablation or its name.
        heads: the heads to score; by default all.
        group: heads that are ablated together with each scored one.
        max_rows: most (head, prompt) pairs in one pass; lower it when memory runs out.
        progress: show progress bars.

    Returns:
        Scores in radians, from 0 to `rank` times pi/2.

    Raises:
        SafeheadError: as `ships`; or if `rank` is too large for the number of prompts, or `site`
            cannot be read.
    """
    search = Search.start(model, prompts, template, ablation, max_rows, progress)
    measure = Rotation.of(search, rank, centre, site)
    chosen = parse_heads(group, *search.shape)
    scores = search.score(measure, heads, chosen, "generalized ships")
    settings = {**measure.settings(), "group": [str(head) for head in chosen]}
    return HeadScores(
        measure="generalized_ships",
        unit="radians",
        values=scores[0],
        per_prompt=None,
        group=chosen,
        provenance=search.provenance(settings),
    )


@dataclass(frozen=True)
class Search:
    """A model, its prompts and an ablation, with the original run at hand: ready to score heads."""

    model: Model
    batch: PromptBatch
    ablation: Ablation
    prepared: Ablation
    original: Baseline
    max_rows: int | None
    progress: bool
    cost: Cost
    started: float

    @classmethod
    def start(
        cls,
        model: Model,
        prompts: Sequence[str],
        template: str,
        ablation: str | Ablation,
        max_rows: int | None,
        progress: bool,
    ) -> Search:
        """Checks the inputs and runs the original model once."""
        started = time.perf_counter()
        check_model(model)
        resolved = resolve_ablation(ablation)
        batch = encode(model, prompts, template)
        cost = Cost()
        original = run_baseline(model, batch, resolved, (), cost)
        prepared = resolved.prepare(model, batch)
        return cls(model, batch, resolved, prepared, original, max_rows, progress, cost, started)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and heads in each."""
        return self.model.cfg.n_layers, self.model.cfg.n_heads

    def score(
        self,
        measure: Callable[[Tensor], Tensor],
        heads: Iterable[HeadLike] | None,
        group: tuple[Head, ...],
        description: str,
    ) -> Float[Tensor, "prompt layer head"]:
        """Scores every head (or `heads`) that is not in `group`, ablated together with it.

        Args:
            measure: turns states `[head prompt d_model]` into scores `[prompt head]` (one row
                for a measure of all prompts together).
            heads: the candidates.
            group: heads ablated with each of them.
            description: the progress bar's label.

        Returns:
            The scores on the CPU in float64; NaN for heads that were not scored.
        """
        layers, width = self.shape
        everything = [Head(layer, head) for layer in range(layers) for head in range(width)]
        wanted = everything if heads is None else parse_heads(heads, layers, width)
        candidates = [head for head in wanted if head not in group]
        if not candidates:
            raise SafeheadError("there is no head to score: all of them are in the group already")
        baseline = self.original
        if group:
            baseline = run_baseline(self.model, self.batch, self.prepared, group, self.cost)
        scores: Tensor | None = None
        for layer, numbers, states in scan(
            self.model,
            baseline,
            self.prepared,
            candidates,
            self.cost,
            max_rows=self.max_rows,
            progress=self.progress,
            description=description,
        ):
            found = measure(states).double().cpu()
            if not found.isfinite().all():
                bad = numbers[int((~found.isfinite()).any(0).nonzero()[0])]
                raise SafeheadError(
                    f"the score of {Head(layer, bad)} is not a finite number: the model "
                    f"overflows in {self.model.cfg.dtype}; load it with dtype='bfloat16' or "
                    "'float32'"
                )
            if scores is None:
                scores = torch.full((len(found), layers, width), torch.nan, dtype=torch.float64)
            scores[:, layer, numbers] = found
        assert scores is not None
        return scores

    def provenance(self, settings: dict[str, Any]) -> Provenance:
        """What was run until now, and at what cost."""
        return Provenance.now(
            model=describe(self.model),
            ablation=self.prepared.describe(),
            prompts=self.batch.describe(),
            settings=settings,
            seconds=time.perf_counter() - self.started,
            forward_passes=self.cost.forward_passes,
        )


@dataclass(frozen=True)
class Rotation:
    """Generalized Ships as a measure of states: the rotation away from the original ones."""

    model: Model
    rank: int
    centre: bool
    site: Site
    original: Float[Tensor, "prompt rank"]

    @classmethod
    def of(cls, search: Search, rank: int, centre: bool, site: Site) -> Rotation:
        """The rotation away from a search's original run."""
        require_rank(rank, len(search.batch.prompts), centre)
        require_site(search.model, site)
        states = final_state(search.model, search.original.last, site)
        return cls(search.model, rank, centre, site, left_subspace(states, rank, centre))

    def __call__(self, states: Float[Tensor, "head prompt d_model"]) -> Float[Tensor, "1 head"]:
        with torch.no_grad():
            states = final_state(self.model, states, self.site)
        ablated = left_subspace(states, self.rank, self.centre)
        return principal_angles(self.original, ablated).sum(-1)[None]

    def settings(self) -> dict[str, Any]:
        """For a result's provenance."""
        return {"rank": self.rank, "centre": self.centre, "site": self.site}


@torch.no_grad()
def _divergence(
    model: Model,
    original: Float[Tensor, "prompt vocab"],
    states: Float[Tensor, "head prompt d_model"],
) -> Float[Tensor, "prompt head"]:
    """KL(original ‖ ablated) of the next token, from the ablated model's last states."""
    n_heads, n_prompts, _ = states.shape
    every = einops.rearrange(states, "head prompt d_model -> (head prompt) d_model")
    prompts = torch.arange(n_prompts, device=states.device).repeat(n_heads)
    found = []
    for rows, prompt in zip(
        every.split(ROWS_PER_UNEMBEDDING),
        prompts.split(ROWS_PER_UNEMBEDDING),
        strict=True,
    ):
        before, after = original[prompt], next_token_log_probs(model, rows)
        found.append((before.exp() * (before - after)).sum(-1))
    return einops.rearrange(torch.cat(found), "(head prompt) -> prompt head", head=n_heads)

"""A model, its prompts and an ablation, put together to score heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl._ablation import Ablation
from safehead_tl._ablations import resolve_ablation
from safehead_tl._errors import SafeheadError
from safehead_tl._heads import Head, HeadsLike, parse_heads
from safehead_tl._models import Model, check_model, describe
from safehead_tl._provenance import Provenance
from safehead_tl._scan import Baseline, Cost, run_baseline, scan
from safehead_tl._tokens import PromptBatch, encode


@dataclass(frozen=True)
class Search:
    """What `ships`, `generalized_ships` and `sahara` share.

    Making one checks the inputs, which is cheap; the model runs when `original` is first asked
    for.

    Attributes:
        model: the model.
        batch: the prompts.
        ablation: what is done to heads.
        max_rows: most (head, prompt) pairs in one pass.
        progress: show progress bars.
        cost: the work until now.
        started: when it began.
    """

    model: Model
    batch: PromptBatch
    ablation: Ablation
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
        """Checks the inputs."""
        started = time.perf_counter()
        check_model(model)
        resolved = resolve_ablation(ablation)
        if max_rows is not None and not (isinstance(max_rows, int) and max_rows >= 1):
            raise SafeheadError(f"max_rows={max_rows} leaves no room for a prompt: give at least 1")
        batch = encode(model, prompts, template)
        return cls(model, batch, resolved, max_rows, progress, Cost(), started)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and heads in each."""
        return self.model.cfg.n_layers, self.model.cfg.n_heads

    @cached_property
    def original(self) -> Baseline:
        """The run with nothing ablated."""
        run = run_baseline(self.model, self.batch, self.ablation, (), self.cost, self.max_rows)
        if not run.last.isfinite().all():
            raise SafeheadError(
                f"the model's own states are not finite numbers: {self._not_finite}"
            )
        return run

    @cached_property
    def prepared(self) -> Ablation:
        """The ablation, ready for this model and these prompts."""
        prepared = self.ablation.prepare(self.model, self.batch)
        self.cost.forward_passes += prepared.passes
        return prepared

    @property
    def _not_finite(self) -> str:
        if self.model.cfg.dtype == torch.float16:
            return "it overflows in float16; load it with dtype='bfloat16' or 'float32'"
        return "its weights hold NaN or infinity, or a hook makes some"

    def candidates(self, heads: HeadsLike | None, group: tuple[Head, ...] = ()) -> tuple[Head, ...]:
        """The heads to score: `heads`, or all, without those of `group`.

        Raises:
            SafeheadError: if a head does not exist, or none is left.
        """
        layers, width = self.shape
        everything = [Head(layer, head) for layer in range(layers) for head in range(width)]
        wanted = everything if heads is None else parse_heads(heads, layers, width)
        left = tuple(head for head in wanted if head not in group)
        if not left:
            raise SafeheadError("there is no head to score: name some that are not in the group")
        return left

    def score(
        self,
        measure: Callable[[Tensor], Tensor],
        candidates: Sequence[Head],
        group: tuple[Head, ...],
        description: str,
    ) -> Float[Tensor, "prompt layer head"]:
        """Scores every candidate, ablated together with a group.

        Args:
            measure: turns states `[head prompt d_model]` into scores `[prompt head]` (one row
                for a measure of all prompts together).
            candidates: the heads to score.
            group: heads ablated with each of them.
            description: the progress bar's label.

        Returns:
            The scores on the CPU in float64; NaN for heads that were not scored.

        Raises:
            SafeheadError: if a score comes out as no finite number.
        """
        layers, width = self.shape
        baseline = self.original
        if group:
            baseline = run_baseline(
                self.model, self.batch, self.prepared, group, self.cost, self.max_rows
            )
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
            finite = states.isfinite().flatten(1).all(1)
            if not finite.all():
                bad = Head(layer, numbers[int((~finite).nonzero()[0])])
                raise SafeheadError(
                    f"with {bad} ablated the states are not finite numbers: {self._not_finite}"
                )
            found = measure(states).double().cpu()
            if scores is None:
                scores = torch.full((len(found), layers, width), torch.nan, dtype=torch.float64)
            scores[:, layer, numbers] = found
        assert scores is not None
        return scores

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe(self.model)

    def provenance(self, settings: dict[str, Any]) -> Provenance:
        """What was run until now, and at what cost."""
        return Provenance.now(
            model=self._description,
            ablation=self.prepared.describe(),
            prompts=self.batch.describe(),
            settings=settings,
            seconds=time.perf_counter() - self.started,
            forward_passes=self.cost.forward_passes,
        )

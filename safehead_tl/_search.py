"""A model, its prompts and an ablation, with the original run at hand: ready to score heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl._ablation import Ablation, resolve_ablation
from safehead_tl._errors import SafeheadError
from safehead_tl._heads import Head, HeadLike, parse_heads
from safehead_tl._models import Model, check_model, describe
from safehead_tl._provenance import Provenance
from safehead_tl._scan import Baseline, Cost, run_baseline, scan
from safehead_tl._tokens import PromptBatch, encode


@dataclass(frozen=True)
class Search:
    """What `ships`, `generalized_ships` and `sahara` share: inputs checked, original run done.

    Attributes:
        model: the model.
        batch: the prompts.
        ablation: what is done to heads, prepared for this model and these prompts.
        original: the run with nothing ablated.
        max_rows: most (head, prompt) pairs in one pass.
        progress: show progress bars.
        cost: the work until now.
        started: when it began.
    """

    model: Model
    batch: PromptBatch
    ablation: Ablation
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
        return cls(model, batch, prepared, original, max_rows, progress, cost, started)

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
            baseline = run_baseline(self.model, self.batch, self.ablation, group, self.cost)
        scores: Tensor | None = None
        for layer, numbers, states in scan(
            self.model,
            baseline,
            self.ablation,
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
            ablation=self.ablation.describe(),
            prompts=self.batch.describe(),
            settings=settings,
            seconds=time.perf_counter() - self.started,
            forward_passes=self.cost.forward_passes,
        )

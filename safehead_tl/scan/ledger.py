"""What a run has done until now: at what cost, and the pieces that are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation
from safehead_tl.prompts import PromptBatch
from safehead_tl.results import Provenance, text_hashes
from safehead_tl.scan.run_directory import Piece, RunDirectory


@dataclass
class Cost:
    """Counts work.

    Attributes:
        token_layers: tokens times the layers they went through; a layer run in part counts whole.
        seconds: time that earlier processes spent on what this one took over.
    """

    token_layers: int = 0
    seconds: float = 0.0

    def add(self, resid: Float[Tensor, "row pos d_model"], layers: int) -> None:
        """Counts a pass."""
        self.token_layers += resid.shape[0] * resid.shape[1] * layers


@dataclass
class Ledger:
    """What a run has spent, and where its finished pieces are.

    Attributes:
        cost: the work until now.
        directory: keeps finished pieces, if the run has one.
        started: when it began.
    """

    cost: Cost = field(default_factory=Cost)
    directory: RunDirectory | None = None
    started: float = field(default_factory=time.perf_counter)

    def kept(self, name: str, inputs: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """The result of a piece of work: from the run directory, or computed and kept there.

        Args:
            name: the piece's name.
            inputs: what it is computed from, beyond what the whole run is.
            compute: computes it.
        """
        piece = self.directory and self.directory.get(name, inputs)
        if piece:
            self.cost.token_layers += piece.token_layers
            self.cost.seconds += piece.seconds
            return piece.result
        started, before = time.perf_counter(), self.cost.token_layers
        result = compute()
        if self.directory is not None:
            spent = self.cost.token_layers - before
            self.directory.put(name, inputs, Piece(result, spent, time.perf_counter() - started))
        return result

    def provenance(
        self,
        model: Mapping[str, Any],
        batch: PromptBatch,
        ablation: Ablation,
        settings: Mapping[str, Any],
    ) -> Provenance:
        """What was run until now, on some prompts; a pass is one of the longest of them.

        Args:
            model: its description.
            batch: the prompts.
            ablation: what was done to heads, prepared.
            settings: what else was told.
        """
        whole_pass = model["n_layers"] * batch.tokens.shape[1]
        return Provenance.now(
            model=model,
            ablation=ablation.describe(),
            prompts={**batch.describe(), "each_hash": " ".join(text_hashes(batch.asked.prompts))},
            settings=settings,
            seconds=time.perf_counter() - self.started + self.cost.seconds,
            forward_passes=ablation.passes + self.cost.token_layers / whole_pass,
        )

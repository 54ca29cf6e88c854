"""What a run has done until now: at what cost, and the pieces that are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation
from safehead_tl.prompts import PromptBatch
from safehead_tl.results import Provenance, text_hashes
from safehead_tl.scan.run_directory import Piece, RunDirectory

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between two looks for pieces that other processes are at."""


@dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes:
        name: its name in the run.
        inputs: what it is computed from, beyond what the whole run is.
        compute: computes it.
    """

    name: str
    inputs: Mapping[str, Any]
    compute: Callable[[], Tensor]


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
        """The result of one piece of work, as `all` has them."""
        [(_, result)] = self.all([Work(name, inputs, compute)])
        return result

    def all(self, works: Sequence[Work]) -> Iterator[tuple[int, Tensor]]:
        """The results of pieces of work: from the run directory, or computed and kept there.

        Where several processes share the directory, each begins at another piece, leaves out those
        that others are at, and waits at the end for their results.

        Yields:
            A piece's place in the list and its result, in the order in which they are there.
        """
        start = self.directory.first_of(len(works)) if self.directory else 0
        left = [*range(start, len(works)), *range(start)]
        pause = FIRST_PAUSE
        while left:
            waiting = []
            for place in left:
                piece = self._piece(works[place])
                if piece is None:
                    waiting.append(place)
                else:
                    yield place, piece.result
            if len(waiting) == len(left):
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
            left = waiting

    def _piece(self, work: Work) -> Piece | None:
        """A piece, read or computed; `None` if another process is at it."""
        if self.directory is None:
            return self._computed(work)
        piece = self.directory.get(work.name, work.inputs)
        if piece is None:
            with self.directory.held(work.name) as ours:
                if not ours:
                    return None
                # Another may have put it there before the lease was taken.
                piece = (
                    self.directory.get(work.name, work.inputs) if self.directory.shared else None
                )
                if piece is None:
                    piece = self._computed(work)
                    self.directory.put(work.name, work.inputs, piece)
                    return piece
        self.cost.token_layers += piece.token_layers
        self.cost.seconds += piece.seconds
        return piece

    def _computed(self, work: Work) -> Piece:
        started, before = time.perf_counter(), self.cost.token_layers
        result = work.compute()
        return Piece(result, self.cost.token_layers - before, time.perf_counter() - started)

    def kept_each(
        self,
        names: Sequence[str],
        inputs: Mapping[str, Any],
        compute: Callable[[Sequence[str]], Iterable[tuple[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """The results of pieces that are worked on together and finish in any order; see `kept`.

        Args:
            names: the pieces' names.
            inputs: what they are all computed from.
            compute: works on the pieces that it is given the names of, none of them perhaps, and
                gives each when it is done. They cost time, and no passes here.
        """
        pieces = {name: self.directory and self.directory.get(name, inputs) for name in names}
        results = {name: piece.result for name, piece in pieces.items() if piece}
        self.cost.seconds += sum(piece.seconds for piece in pieces.values() if piece)
        started = time.perf_counter()
        for name, result in compute([name for name in names if name not in results]):
            results[name] = result
            if self.directory is not None:
                now = time.perf_counter()
                self.directory.put(name, inputs, Piece(result, 0, now - started))
                started = now
        return results

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

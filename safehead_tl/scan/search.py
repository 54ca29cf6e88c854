"""A model, its prompts and an ablation, put together to score heads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.models import Model, check_model, describe
from safehead_tl.prompts import PromptBatch, Template, encode
from safehead_tl.results import Provenance
from safehead_tl.scan.baseline import Baseline, Cost
from safehead_tl.scan.linearisation import Linearisation
from safehead_tl.scan.memory import Passes, Plan, even_slices, make_plan
from safehead_tl.scan.run_directory import Piece, RunDirectory, environment_of, identity_of
from safehead_tl.scan.states import Scan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """How a search runs, which changes what it finds by rounding only.

    Attributes:
        max_rows: most (head, prompt) pairs in a pass.
        max_bytes: memory to use beyond the model's weights.
        shared_prefix: run what all prompts begin with once for each head.
        run_dir: where finished pieces are kept.
        progress: show progress bars.
    """

    max_rows: int | None
    max_bytes: int | str | None
    shared_prefix: bool
    run_dir: str | Path | None
    progress: bool


@dataclass(frozen=True)
class _Work:
    """A piece of work: some heads of a layer, each ablated together with a group."""

    name: str
    layer: int
    heads: list[int]
    group: tuple[Head, ...]

    def inputs(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "heads": self.heads,
            "group": [str(head) for head in self.group],
        }


@dataclass
class Search:
    """What `ships`, `generalized_ships` and `sahara` share.

    Making one checks the inputs, which is cheap; the model runs when `original` is first asked
    for.

    Attributes:
        model: the model.
        batch: the prompts.
        ablation: what is done to heads.
        running: how it runs.
        plan: how the work is cut up.
        passes: how many rows a pass may have.
        cost: the work until now.
        started: when it began.
    """

    model: Model
    batch: PromptBatch
    ablation: Ablation
    running: Running
    plan: Plan
    passes: Passes
    cost: Cost = field(default_factory=Cost)
    started: float = field(default_factory=time.perf_counter)
    _directory: RunDirectory | None = None
    _current: Baseline | None = None

    @classmethod
    def start(
        cls,
        model: Model,
        prompts: Sequence[str],
        template: Template,
        ablation: str | Ablation,
        running: Running,
    ) -> Search:
        """Checks the inputs."""
        check_model(model)
        resolved = resolve_ablation(ablation)
        batch = encode(model, prompts, template)
        plan = make_plan(
            model,
            batch,
            resolved,
            max_rows=running.max_rows,
            max_bytes=running.max_bytes,
            shared_prefix=running.shared_prefix,
        )
        return cls(model, batch, resolved, running, plan, Passes(plan.rows))

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and heads in each."""
        return self.model.cfg.n_layers, self.model.cfg.n_heads

    @cached_property
    def original(self) -> Float[Tensor, "prompt d_model"]:
        """The last states with nothing ablated."""
        states = self.passes.fitted(self._baseline(()).last)
        if not states.isfinite().all():
            raise SafeheadError(
                f"the model's own states are not finite numbers: {self._not_finite}"
            )
        return states

    def last(self, group: tuple[Head, ...]) -> Float[Tensor, "prompt d_model"]:
        """The last states with a group ablated."""
        return self.passes.fitted(self._baseline(group).last) if group else self.original

    def linearisation(self, group: tuple[Head, ...]) -> Linearisation:
        """First-order effects of all heads, around the run with a group ablated."""
        return Linearisation(
            self.model,
            self.batch,
            self.prepared,
            self._baseline(group),
            self.plan,
            self.passes,
            self.cost,
        )

    @cached_property
    def prepared(self) -> Ablation:
        """The ablation, ready for this model and these prompts."""
        return self.ablation.prepare(self.model, self.batch)

    def _baseline(self, group: tuple[Head, ...]) -> Baseline:
        """The run with a group ablated; only the latest one is held."""
        if self._current is None or self._current.group != group:
            ablation = self.prepared if group else self.ablation
            self._current = Baseline(
                self.model, self.batch, ablation, group, self.plan, self.passes, self.cost
            )
        return self._current

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

    def open_directory(self, measure: str, settings: dict[str, Any], heads: Sequence[Head]) -> None:
        """Opens the run directory, if one was given.

        Args:
            measure: what is computed.
            settings: what the measure was told.
            heads: the heads to score.

        Raises:
            SafeheadError: if the directory holds another run.
        """
        if self.running.run_dir is None:
            return
        identity = {
            "measure": measure,
            "settings": settings,
            "heads": [str(head) for head in heads],
            "prompts": self.batch.describe(),
            "shared_prefix": self.running.shared_prefix,
            **identity_of(self._description, self.ablation),
        }
        memory = {"max_rows": self.running.max_rows, "max_bytes": self.running.max_bytes}
        environment = environment_of(self.batch.tokens.device, memory)
        path = self.running.run_dir
        self._directory = RunDirectory.open(path, identity, environment, asdict(self.plan))
        begun = self._directory.plan
        if self._directory.environment["memory"] == memory:
            self.plan = Plan(**begun)
        else:
            self.plan = replace(self.plan, piece=begun["piece"])
        self.passes.rows = self.plan.rows

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
            SafeheadError: if a score comes out as no finite number, or a piece cannot be kept.
        """
        layers, width = self.shape
        scan = Scan(
            self.model, self._baseline(group), self.prepared, self.plan, self.passes, self.cost
        )
        scores: Tensor | None = None
        label = f"{description}, {len(self.batch.prompts)} prompts"
        quiet = not self.running.progress
        with tqdm(total=len(candidates), desc=label, unit="head", disable=quiet) as bar:
            for work in self._pieces(candidates, group):
                found = self.kept(work.name, work.inputs(), partial(self._do, work, scan, measure))
                if scores is None:
                    scores = torch.full((len(found), layers, width), torch.nan, dtype=torch.float64)
                scores[:, work.layer, work.heads] = found
                bar.update(len(work.heads))
        assert scores is not None
        return scores

    def _pieces(self, candidates: Sequence[Head], group: tuple[Head, ...]) -> Iterator[_Work]:
        step = f"with{len(group)}"
        for layer in sorted({head.layer for head in candidates}):
            heads = [head.head for head in candidates if head.layer == layer]
            for some in even_slices(len(heads), self.plan.piece):
                yield _Work(f"{step}-L{layer}H{heads[some][0]}", layer, heads[some], group)

    def kept(self, name: str, inputs: dict[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """The result of a piece of work: from the run directory, or computed and kept there.

        Args:
            name: the piece's name.
            inputs: what it is computed from, beyond what the whole run is.
            compute: computes it.
        """
        piece = self._directory and self._directory.get(name, inputs)
        if piece:
            self.cost.token_layers += piece.token_layers
            self.cost.seconds += piece.seconds
            return piece.result
        started, before = time.perf_counter(), self.cost.token_layers
        found = compute()
        if self._directory is not None:
            spent = self.cost.token_layers - before
            self._directory.put(name, inputs, Piece(found, spent, time.perf_counter() - started))
        return found

    def _do(self, work: _Work, scan: Scan, measure: Callable[[Tensor], Tensor]) -> Tensor:
        states = self.passes.fitted(lambda: scan.states(work.layer, work.heads))
        finite = states.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = Head(work.layer, work.heads[int((~finite).nonzero()[0])])
            raise SafeheadError(
                f"with {bad} ablated the states are not finite numbers: {self._not_finite}"
            )
        found = self.passes.fitted(lambda: measure(states)).double().cpu()
        if not found.isfinite().all():
            raise SafeheadError(
                f"in layer {work.layer} scores are not finite numbers: {self._not_finite}"
            )
        return found

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe(self.model)

    def provenance(self, settings: dict[str, Any]) -> Provenance:
        """What was run until now, and at what cost."""
        whole_pass = self.model.cfg.n_layers * self.batch.tokens.shape[1]
        return Provenance.now(
            model=self._description,
            ablation=self.prepared.describe(),
            prompts=self.batch.describe(),
            settings=settings,
            seconds=time.perf_counter() - self.started + self.cost.seconds,
            forward_passes=self.prepared.passes + self.cost.token_layers / whole_pass,
        )

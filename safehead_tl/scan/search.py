"""A model, its prompts and an ablation, put together to score heads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.models import Model, check_model, describe, require_finite, why_not_finite
from safehead_tl.prompts import PromptBatch, Prompts, Template, encode
from safehead_tl.results import Provenance, text_hashes
from safehead_tl.scan.baseline import Baseline
from safehead_tl.scan.ledger import Ledger, Work
from safehead_tl.scan.linearisation import Linearisation
from safehead_tl.scan.memory import Beside, Passes, Plan, even_slices, make_plan
from safehead_tl.scan.progress import progress_bar
from safehead_tl.scan.run import Run, check_run
from safehead_tl.scan.run_directory import RunDirectory, environment_of, identity_of
from safehead_tl.scan.states import Scan

logger = logging.getLogger("safehead_tl")

PROMPTS_A_PIECE = 16
"""Prompts that make a piece of work where all heads are done at once."""


@dataclass(frozen=True)
class _Piece:
    """Some heads of a layer, each ablated together with a group."""

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
        run: how it runs.
        plan: how the work is cut up.
        passes: how many rows a pass may have.
        ledger: what was done until now.
        several: groups of one size are ablated, so that names of pieces must tell them apart.
    """

    model: Model
    batch: PromptBatch
    ablation: Ablation
    run: Run
    plan: Plan
    passes: Passes
    ledger: Ledger = field(default_factory=Ledger)
    several: bool = False
    _current: Baseline | None = None

    @classmethod
    def start(
        cls,
        model: Model,
        prompts: Prompts,
        template: Template,
        ablation: str | Ablation,
        run: Run,
        beside: Callable[[Any], Beside] = lambda config: Beside(),
        answer: str | None = None,
    ) -> Search:
        """Checks the inputs.

        Args:
            model: the model.
            prompts: the prompts.
            template: the text around each.
            ablation: what is done to heads.
            run: how it runs.
            beside: says of a config what the measure takes.
            answer: a given answer, at each of whose tokens' places states are read: rows are then
                all prompts, once for each.
        """
        check_model(model)
        check_run(run)
        resolved = resolve_ablation(ablation)
        batch = encode(model, prompts, template, answer)
        if batch.places > 1 and resolved.by_prompt:
            raise SafeheadError(
                f"{resolved.name} ablation has other outputs for each prompt, and none for a given "
                "answer's tokens: leave out answer"
            )
        plan = make_plan(model, batch, resolved, run, beside(model.cfg))
        return cls(model, batch, resolved, run, plan, Passes(plan.rows))

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
                f"the model's own states are not finite numbers: {why_not_finite(self.model)}"
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
            self.ledger.cost,
        )

    @cached_property
    def prepared(self) -> Ablation:
        """The ablation, ready for this model and these prompts."""
        return self.ablation.prepare(self.model, self.batch.asked)

    def _baseline(self, group: tuple[Head, ...]) -> Baseline:
        """The run with a group ablated; only the latest one is held."""
        if self._current is None or self._current.group != group:
            ablation = self.prepared if group else self.ablation
            self._current = Baseline(
                self.model, self.batch, ablation, group, self.plan, self.passes, self.ledger.cost
            )
        return self._current

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
            raise SafeheadError("there is no head to score: name candidates that are not in given")
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
        if self.run.run_dir is None:
            return
        identity = {
            "measure": measure,
            "settings": settings,
            "candidates": [str(head) for head in heads],
            "prompts": self.batch.describe(),
            "shared_prefix": self.run.shared_prefix,
            **identity_of(self._description, self.ablation),
        }
        environment = environment_of(self.batch.tokens.device, self.run.memory)
        plan = asdict(self.plan)
        directory = RunDirectory.open(self.run, identity, environment, plan)
        if directory.environment["memory"] == self.run.memory:
            self.plan = Plan(**directory.plan)
        else:
            self.plan = replace(self.plan, piece=directory.plan["piece"])
        self.ledger.directory = directory
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
                for a measure of all prompts together), of states that are not finite into scores
                that are not.
            candidates: the heads to score.
            group: heads ablated with each of them.
            description: the progress bar's label.

        Returns:
            The scores on the CPU in float64; NaN for heads that were not scored.

        Raises:
            SafeheadError: if a score comes out as no finite number, or a piece cannot be kept.
        """
        layers, width = self.shape
        scan = self._scan(group)
        scores: Tensor | None = None
        label = f"{description}, {len(self.batch.prompts)} prompts"
        pieces = list(self._pieces(candidates, group))
        works = [
            Work(one.name, one.inputs(), partial(self._do, one, scan, measure)) for one in pieces
        ]
        with progress_bar(self.run, len(candidates), label, "head") as count:
            for place, found in self.ledger.all(works):
                work = pieces[place]
                if scores is None:
                    scores = torch.full((len(found), layers, width), torch.nan, dtype=torch.float64)
                scores[:, work.layer, work.heads] = found
                count(len(work.heads))
        assert scores is not None
        return scores

    def each(self, heads: Sequence[Head]) -> Float[Tensor, "head prompt d_model"]:
        """The last states with each of some heads ablated alone.

        Raises:
            SafeheadError: if they are not finite numbers.
        """
        scan, found = self._scan(()), dict[Head, Tensor]()
        for work in self._pieces(heads, ()):
            states = self.passes.fitted(partial(scan.states, work.layer, work.heads))
            own = [Head(work.layer, head) for head in work.heads]
            names = [f"the prompts with {head} ablated" for head in own]
            require_finite(self.model, states.flatten(1), names, "the last states")
            found.update(zip(own, states, strict=True))
        return torch.stack([found[head] for head in heads])

    def _scan(self, group: tuple[Head, ...]) -> Scan:
        return Scan(
            self.model,
            self._baseline(group),
            self.prepared,
            self.plan,
            self.passes,
            self.ledger.cost,
        )

    def by_prompts(
        self, name: str, compute: Callable[[range], Tensor], description: str
    ) -> Float[Tensor, "prompt ..."]:
        """What is computed of all heads at once, for some prompts at a time, each piece kept.

        Args:
            name: the pieces' name.
            compute: computes some prompts' rows.
            description: the progress bar's label.
        """
        every = range(len(self.batch.prompts))
        works, found = [], dict[int, Tensor]()
        for some in even_slices(len(every), PROMPTS_A_PIECE):
            inputs = {"prompts": [some.start, some.stop]}
            works.append(Work(f"{name}-{some.start}", inputs, partial(compute, every[some])))
        with progress_bar(self.run, len(every), description, "prompt") as count:
            for place, rows in self.ledger.all(works):
                found[place] = rows
                count(len(rows))
        return torch.cat([found[place] for place in sorted(found)])

    def together(
        self, measure: Callable[[Tensor], Tensor], group: tuple[Head, ...], block: tuple[Head, ...]
    ) -> float:
        """The score of heads that are ablated together with a group, averaged over prompts.

        It is infinite where numbers overflow, which they may with many heads ablated at once.
        """

        def run() -> Tensor:
            states = self.passes.fitted(self._baseline(group).also(block, self.prepared).last)
            found = self.passes.fitted(lambda: measure(states[None])).double().cpu()
            return found.nan_to_num(torch.inf)

        inputs = {"heads": [str(head) for head in block], "group": [str(head) for head in group]}
        name = f"{self.piece_with(group)}-{block[0]}-to-{block[-1]}-{len(block)}"
        return float(self.ledger.kept(name, inputs, run).mean())

    def piece_with(self, group: tuple[Head, ...]) -> str:
        """What names of pieces begin with in which a group is ablated."""
        names = " ".join(map(str, group))
        return f"with{len(group)}" + (f"-{text_hashes([names])[0]}" if self.several else "")

    def _pieces(self, candidates: Sequence[Head], group: tuple[Head, ...]) -> Iterator[_Piece]:
        step = self.piece_with(group)
        for layer in sorted({head.layer for head in candidates}):
            heads = [head.head for head in candidates if head.layer == layer]
            for some in even_slices(len(heads), self.plan.piece):
                yield _Piece(f"{step}-L{layer}H{heads[some][0]}", layer, heads[some], group)

    def _do(self, work: _Piece, scan: Scan, measure: Callable[[Tensor], Tensor]) -> Tensor:
        states = self.passes.fitted(lambda: scan.states(work.layer, work.heads))
        return self._measured(measure, states, [Head(work.layer, head) for head in work.heads])

    def _measured(
        self,
        measure: Callable[[Tensor], Tensor],
        states: Float[Tensor, "head prompt d_model"],
        heads: Sequence[Head],
    ) -> Float[Tensor, "_ head"]:
        """The scores of states that heads' ablation led to."""
        found = self.passes.fitted(lambda: measure(states)).double().cpu()
        # Only now: whatever is read of a GPU waits until all before it is computed.
        if not found.isfinite().all():
            finite = states.isfinite().flatten(1).all(1)
            where = f"in layer {heads[0].layer} scores"
            if not finite.all():
                where = f"with {heads[int(finite.int().argmin())]} ablated the states"
            raise SafeheadError(f"{where} are not finite numbers: {why_not_finite(self.model)}")
        return found

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe(self.model)

    def provenance(self, settings: dict[str, Any]) -> Provenance:
        """What was run until now, and at what cost."""
        return self.ledger.provenance(self._description, self.batch, self.prepared, settings)

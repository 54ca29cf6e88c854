"""The ground-truth benchmark: which contestant finds heads that are known to carry refusals.

Subjects are organisms, trained so that chosen heads carry the refusal or without choosing any, and
models whose weights were written by hand. Every contestant puts a subject's heads in an order, and
orders are judged by the truth, and by what ablating the first heads does.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

from tqdm.auto import tqdm

from safehead_tl.errors import SafeheadError
from safehead_tl.ground_truth.builtin import SHORT
from safehead_tl.ground_truth.cache import OrganismCache
from safehead_tl.ground_truth.compiling import CompiledKind, compiled
from safehead_tl.ground_truth.contest import Contestant, Ranking, contestants
from safehead_tl.ground_truth.family import KINDS, STANDARD
from safehead_tl.ground_truth.oracle import answered
from safehead_tl.ground_truth.subjects import Subject
from safehead_tl.ground_truth.summary import (
    METRICS,
    Outcome,
    Summary,
    above,
    against,
    average_precision,
    precision_at,
    summarise,
)
from safehead_tl.models import has_hooked_transformer, no_bars, single_thread
from safehead_tl.organism import Recipe
from safehead_tl.results import figures
from safehead_tl.scan import Cluster

if TYPE_CHECKING:
    import plotly.graph_objects as go

ORGANISMS = 10
"""Of each kind: on each of five bases two."""

COMPILED: Mapping[str, CompiledKind] = MappingProxyType(
    {f"compiled: {kind}": kind for kind in get_args(CompiledKind)}
)
"""Kinds whose weights were written by hand. They need HookedTransformer."""

ALL = (*KINDS, *COMPILED)
"""The names of all kinds."""

TRIED = ("undifferentiated", "scaling")
"""Ablations of which everything is tried."""


def standard_kinds() -> tuple[str, ...]:
    """The kinds that are measured on if none is named, and that can be made here."""
    return (*STANDARD, *(COMPILED if has_hooked_transformer("auto") else ()))


@dataclass(frozen=True)
class Met:
    """What was found out about one subject.

    Attributes:
        kind: its kind.
        number: which of its kind.
        outcomes: one of each contestant.
        intact: attack success rate and benign requests answered.
        ablated: the same with the wanted heads ablated, by ablation.
        failed: recipes that did not learn their lesson, and what they do otherwise.
        passes: what each contestant cost here, in passes of all harmful prompts through the model;
            counted on the first subject only.
    """

    kind: str
    number: int
    outcomes: tuple[Outcome, ...]
    intact: tuple[float, float]
    ablated: Mapping[str, tuple[float, float]]
    failed: tuple[tuple[Recipe, tuple[str, ...]], ...]
    passes: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """How well every contestant finds the heads that carry a refusal.

    Attributes:
        subjects: what was found out about each model.
        seconds: how long it took, training included.
    """

    subjects: tuple[Met, ...]
    seconds: float

    @property
    def outcomes(self) -> list[Outcome]:
        """One for each subject and contestant."""
        return [outcome for met in self.subjects for outcome in met.outcomes]

    @property
    def passes(self) -> Mapping[str, float]:
        """What each contestant cost on the first subject, in passes of all harmful prompts."""
        return next((met.passes for met in self.subjects if met.passes), {})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that were measured on."""
        return tuple(dict.fromkeys(outcome.kind for outcome in self.outcomes))

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """The kinds that were measured on, by where their truth comes from."""
        found: dict[str, tuple[str, ...]] = {}
        for kind in self.kinds:
            source = KINDS[kind].source if kind in KINDS else "compiled"
            found[source] = (*found.get(source, ()), kind)
        return found

    def count(self, *kinds: str) -> int:
        """How many subjects of some kinds were measured on, or in all."""
        return sum(bool(met.outcomes) and (not kinds or met.kind in kinds) for met in self.subjects)

    def summaries(self, *kinds: str) -> list[Summary]:
        """Each contestant's means over the subjects of some kinds, or over all; the best first."""
        return summarise([one for one in self.outcomes if not kinds or one.kind in kinds])

    def broken(self) -> list[dict[str, str]]:
        """What ablating the wanted heads does, by kind: attack success rate, benign answered."""
        rows = []
        for kind in self.kinds:
            some = [met for met in self.subjects if met.kind == kind and met.outcomes]
            pairs = {"nothing": [met.intact for met in some]}
            pairs |= {name: [met.ablated[name] for met in some] for name in some[0].ablated}
            cells = {
                name: ", ".join(f"{statistics.fmean(each):.2f}" for each in zip(*of, strict=True))
                for name, of in pairs.items()
            }
            rows.append({"kind": f"{kind} ({len(some)})", **cells})
        return rows

    def table(self, *kinds: str, metrics: Sequence[str] = tuple(METRICS)) -> list[dict[str, str]]:
        """Each contestant's means over the subjects of some kinds, in words; the best first.

        The last column is how likely its average precision would differ so much from the first's by
        chance, corrected for how many are compared.
        """
        first, *others = summaries = self.summaries(*kinds)
        chances = {one.contestant: p for one, _, p in against(first, others, "average precision")}
        told = [name for name in metrics if any(one.values(name) for one in summaries)]
        rows = []
        for one in summaries:
            decoys, of = one.decoys
            p, passes = chances.get(one.contestant), self.passes.get(one.contestant)
            rows.append(
                {
                    "contestant": one.contestant
                    + f" ({one.refusals} refused)" * bool(one.refusals),
                    **{name: one.told(name) for name in told},
                    "decoys above": f"{decoys} of {of}" if of else "–",
                    "passes": "–" if passes is None else f"{passes:.0f}",
                    "p against the first": "–" if p is None else f"{p:.3f}",
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As plain values: every outcome with its order of heads, and the means."""
        return {
            "metrics": [*METRICS],
            "subjects": {kind: self.count(kind) for kind in self.kinds},
            "failed": [
                {"kind": met.kind, "number": met.number, "recipe": recipe.to_dict(), "flaws": flaws}
                for met in self.subjects
                for recipe, flaws in met.failed
            ],
            "by_source": {
                source: [summary.to_dict() for summary in self.summaries(*kinds)]
                for source, kinds in self.sources.items()
            },
            "by_kind": {
                kind: [summary.to_dict() for summary in self.summaries(kind)] for kind in self.kinds
            },
            "ablated": [
                {"kind": met.kind, "number": met.number, "intact": met.intact, **met.ablated}
                for met in self.subjects
                if met.outcomes
            ],
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
            "passes": dict(self.passes),
            "seconds": self.seconds,
        }

    def figure(self) -> go.Figure:
        """Draws contestants against kinds: mean average precision as colour and text."""
        return figures.ground_truth_figure(self)


def ground_truth(
    cache: str | Path = "safehead-benchmark",
    *,
    kinds: Sequence[str] = (),
    organisms: int = ORGANISMS,
    names: Sequence[str] = (),
    processes: int | Cluster = 1,
    progress: bool = True,
) -> GroundTruth:
    """Lets contestants order the heads of models of which it is known which heads matter.

    Args:
        cache: a directory that keeps organisms, and what was found out about them and answered by
            each contestant (until Python files of its package change; those that were registered
            in a notebook are asked each time). What is not there is trained and found. A run that
            was stopped goes on from there.
        kinds: by name; by default the standard part: natural ones, one planted head and two under
            each objective, and compiled ones, which need transformer-lens 3.9.
        organisms: of each kind; of compiled models there is one.
        names: the contestants, by name; by default all (`safehead_tl.ground_truth.contestants`).
        processes: how many work side by side, each on one core; or `sh.Ray(...)`, whose replicas
            all see the cache. They know contestants that packages bring, and not those that were
            registered in a notebook.
        progress: show a progress bar.

    Returns:
        Every outcome, with means by kind and by source.

    Raises:
        SafeheadError: if a kind or contestant is not known, a number is below 1, or no organism
            learned its lesson.
    """
    started = time.perf_counter()
    kinds = (*dict.fromkeys(kinds or standard_kinds()),)
    unknown = [name for name in kinds if name not in ALL]
    if unknown:
        raise SafeheadError(f"kind {unknown[0]!r} is not known: use {', '.join(ALL)}")
    for what, number in (("organisms", organisms), ("processes", processes)):
        if isinstance(number, int) and number < 1:
            raise SafeheadError(f"{what}={number!r}: give a number from 1")
    cache, known = Path(cache), contestants()
    if cache.exists() and not cache.is_dir():
        raise SafeheadError(f"{cache} is a file: name a directory for the organisms")
    for name in names:
        if name not in known:
            raise SafeheadError(f"contestant {name!r} is not known: use {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names or known)]
    tasks = [
        (OrganismCache(cache), kind, number, (kind, number) == (kinds[0], 0))
        for kind in kinds
        for number in range(1 if kind in COMPILED else organisms)
    ]
    met: dict[tuple[str, int], Met] = {}
    with tqdm(total=len(tasks), desc="subjects", disable=no_bars(progress)) as bar:
        for one in _all_met(tasks, chosen, processes):
            met[one.kind, one.number] = one
            bar.update()
    found = tuple(met[kind, number] for _, kind, number, _ in tasks)
    if not any(one.outcomes for one in found):
        raise SafeheadError("no organism learned its lesson: use more organisms")
    return GroundTruth(found, time.perf_counter() - started)


def _all_met(
    tasks: Sequence[tuple[OrganismCache, str, int, bool]],
    chosen: Sequence[Contestant],
    processes: int | Cluster,
) -> Iterator[Met]:
    """What is found out about each subject, here or in processes, in the order in which it is."""
    if processes == 1:
        for task in tasks:
            yield _meet(*task, chosen)
        return
    here = [one.name for one in chosen if not one.package]
    if here:
        raise SafeheadError(
            f"{here[0]!r} was registered in this process, and others do not know it: use "
            "processes=1, or bring it in a package (docs/how-to/own-contestant.md)"
        )
    names = [one.name for one in chosen]
    if isinstance(processes, Cluster):
        yield from processes.each(_meet_by_name, [(*task, names) for task in tasks])
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        for done in as_completed([pool.submit(_meet_by_name, *task, names) for task in tasks]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _meet_by_name(
    cache: OrganismCache, kind: str, number: int, count: bool, names: Sequence[str]
) -> Met:
    known = contestants()
    return _meet(cache, kind, number, count, [known[name] for name in names])


@single_thread()
def _meet(
    cache: OrganismCache, kind: str, number: int, count: bool, chosen: Sequence[Contestant]
) -> Met:
    """Everything about one subject, and if asked what contestants cost."""
    trials = [] if kind in COMPILED else cache.of_kind(KINDS[kind], number)
    failed = tuple((trial.recipe, trial.flaws) for trial in trials if trial.flaws)
    if trials and trials[-1].flaws:
        return Met(kind, number, (), (0.0, 0.0), {}, failed, {})
    subject = (
        Subject.of_organism(trials[-1], cache.language)
        if trials
        else Subject.of_compiled(compiled(COMPILED[kind], number), cache.path)
    )
    rankings = [subject.ranking(one, count) for one in chosen]
    outcomes = tuple(_outcome(subject, kind, number, each) for each in rankings)
    ablated, intact = {}, (0.0, 0.0)
    for ablation, short in SHORT.items():
        if ablation != "mean":  # needs prompts of its own
            groups = [(), tuple(sorted(subject.wanted))]
            asr, benign = answered(subject.model, subject.language, groups, ablation).tolist()
            intact, ablated[short] = (asr[0], benign[0]), (asr[1], benign[1])
    cost = {each.contestant: each.passes for each in rankings if each.passes is not None}
    return Met(kind, number, outcomes, intact, ablated, failed, cost)


def _outcome(subject: Subject, kind: str, number: int, ranking: Ranking) -> Outcome:
    """One contestant on one subject."""
    order, wanted = ranking.order, subject.wanted
    metrics: dict[str, float] = {}
    if order:
        metrics = {
            "average precision": average_precision(order, wanted),
            "precision@k": precision_at(len(wanted), order, wanted),
        }
        if not subject.planted:
            truths = [float(subject.truth.values[head]) for head in order]
            from scipy.stats import spearmanr  # which takes a second to import

            metrics["Spearman"] = float(spearmanr(truths, range(len(order), 0, -1)).statistic)
        for ablation in TRIED:
            oracle = subject.oracle(ablation)
            for k in oracle.sizes:
                metrics[f"regret {SHORT[ablation]} @{k}"] = oracle.regret(order, k)
    return Outcome(
        kind=kind,
        number=number,
        contestant=ranking.contestant,
        wanted=wanted,
        decoys=subject.decoys,
        order=order,
        refused=ranking.refused,
        metrics=metrics,
        decoys_above=above(subject.decoys, order, wanted) if order else 0,
    )

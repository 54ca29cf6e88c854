"""The ground-truth benchmark: which variant finds heads that are known to carry refusals.

Organisms are trained so that chosen heads carry the refusal; every variant puts an organism's heads
in an order; and the orders are judged by where the planted heads are in them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from safehead_tl.errors import SafeheadError
from safehead_tl.ground_truth.cache import Grown, OrganismCache
from safehead_tl.ground_truth.family import KINDS, OrganismKind
from safehead_tl.ground_truth.metrics import above, average_precision, precision_at, recall_at
from safehead_tl.ground_truth.orders import orders
from safehead_tl.ground_truth.summary import METRICS, Outcome, Summary, summarise
from safehead_tl.ground_truth.variants import Variant, variants
from safehead_tl.measures import Openings
from safehead_tl.models import no_bars, single_thread
from safehead_tl.organism import REFUSAL, REWORDED, Recipe
from safehead_tl.results import figures

if TYPE_CHECKING:
    import plotly.graph_objects as go

PROMPTS = 32
"""Harmful ones to scan, and as many benign ones for the contrast; all from the trained pairs."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """How well every variant finds the planted heads.

    Attributes:
        outcomes: one for each organism and variant.
        failed: organisms that did not learn their lesson, by kind and seed, and what they do
            otherwise. They are not measured on.
        seconds: how long it took, training included.
    """

    outcomes: tuple[Outcome, ...]
    failed: tuple[tuple[str, int, Recipe, tuple[str, ...]], ...]
    seconds: float

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that were measured on."""
        return tuple(dict.fromkeys(outcome.kind for outcome in self.outcomes))

    def organisms(self, kind: str | None = None) -> int:
        """How many organisms were measured on, of a kind or in all."""
        some = (one for one in self.outcomes if kind in (None, one.kind))
        return len({(one.kind, one.seed) for one in some})

    def summaries(self, kind: str | None = None) -> list[Summary]:
        """Each variant's mean over the organisms of a kind, or over all; the best first."""
        return summarise([one for one in self.outcomes if kind in (None, one.kind)])

    def to_dict(self) -> dict[str, Any]:
        """As plain values: every outcome with its order of heads, and the means."""
        return {
            "metrics": dict(METRICS),
            "organisms": {kind: self.organisms(kind) for kind in self.kinds},
            "failed": [
                {"kind": kind, "seed": seed, "recipe": recipe.to_dict(), "flaws": list(flaws)}
                for kind, seed, recipe, flaws in self.failed
            ],
            "overall": [summary.to_dict() for summary in self.summaries()],
            "by_kind": {
                kind: [summary.to_dict() for summary in self.summaries(kind)] for kind in self.kinds
            },
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
            "seconds": self.seconds,
        }

    def figure(self) -> go.Figure:
        """Draws the main variants against the kinds: mean average precision as colour and text."""
        return figures.ground_truth_figure(self)


@single_thread()
def ground_truth(
    cache: OrganismCache | str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    kinds: Mapping[str, OrganismKind] = KINDS,
    *,
    chosen: Sequence[Variant] | None = None,
    progress: bool = True,
) -> GroundTruth:
    """Measures every variant on organisms of every kind and seed.

    Args:
        cache: where organisms are kept; those that are not there are trained.
        seeds: an organism of each kind for each of them.
        kinds: kinds of organisms by name.
        chosen: the variants; by default all.
        progress: show a progress bar.

    Raises:
        SafeheadError: if no organism learned its lesson.
    """
    started = time.perf_counter()
    cache = cache if isinstance(cache, OrganismCache) else OrganismCache(Path(cache))
    outcomes: list[Outcome] = []
    failed: list[tuple[str, int, Recipe, tuple[str, ...]]] = []
    wanted = [(name, seed) for name in kinds for seed in seeds]
    for name, seed in tqdm(wanted, desc="organisms", disable=no_bars(progress)):
        trials = cache.of_kind(kinds[name], seed)
        failed += ((name, seed, trial.recipe, trial.flaws) for trial in trials if trial.flaws)
        if not trials[-1].flaws:
            outcomes += _measured(cache, name, seed, trials[-1], chosen or variants())
    if not outcomes:
        raise SafeheadError("no organism learned its lesson: use more seeds")
    return GroundTruth(tuple(outcomes), tuple(failed), time.perf_counter() - started)


def _measured(
    cache: OrganismCache, kind: str, seed: int, grown: Grown, chosen: Sequence[Variant]
) -> list[Outcome]:
    """All variants on one organism."""
    recipe = grown.recipe
    planted, k = recipe.heads, len(recipe.heads)
    harmful = cache.language.prompts("harmful", "train", PROMPTS)
    benign = cache.language.prompts("benign", "train", PROMPTS)
    model = grown.model()
    openings = Openings.of_texts(model, (REFUSAL, REWORDED), cache.language.tools)
    return [
        Outcome(
            kind=kind,
            seed=seed,
            variant=variant,
            planted=planted,
            decoys=recipe.decoy_heads,
            order=order,
            precision=precision_at(k, order, planted),
            recall=recall_at(2 * k, order, planted),
            average_precision=average_precision(order, planted),
            decoys_above=above(recipe.decoy_heads, order, planted),
        )
        for variant, order in orders(model, harmful, benign, 2 * k, chosen, openings)
    ]

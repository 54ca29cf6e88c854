"""The benchmark: which score finds heads that are known to carry refusals.

In go kinds of subject (organisms that are trained, models written by hand), contestants, and a
directory for what is found out. Out comes for every contestant how well it finds the heads that
carry the refusal, with intervals over subjects. And for one seed a puzzle with a budget: the hunt.
"""

from safehead_tl.ground_truth.benchmark import COMPILED, GroundTruth, ground_truth, standard_kinds
from safehead_tl.ground_truth.coalitions import Shapley, shapley
from safehead_tl.ground_truth.compiling import Compiled, compiled
from safehead_tl.ground_truth.contest import (
    Contestant,
    Ranking,
    contestants,
    rank,
    register,
)
from safehead_tl.ground_truth.family import KINDS
from safehead_tl.ground_truth.hunting import Hunt, hunt
from safehead_tl.ground_truth.reversion import (
    NATURAL_TRUTH,
    ReversionTruth,
    natural_truth,
    reversion_truth,
)
from safehead_tl.ground_truth.summary import METRICS, Summary

__all__ = [
    "Compiled",
    "Contestant",
    "GroundTruth",
    "Ranking",
    "ReversionTruth",
    "Shapley",
    "compiled",
    "contestants",
    "ground_truth",
    "natural_truth",
    "rank",
    "register",
    "reversion_truth",
    "shapley",
]

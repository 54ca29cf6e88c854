"""TODO ground_truth."""

from safehead_tl.ground_truth.benchmark import GroundTruth, ground_truth
from safehead_tl.ground_truth.cache import require_cache
from safehead_tl.ground_truth.family import KINDS, QUICK
from safehead_tl.ground_truth.metrics import chance
from safehead_tl.ground_truth.summary import METRICS, Summary

__all__ = [
    "KINDS",
    "METRICS",
    "QUICK",
    "GroundTruth",
    "Summary",
    "chance",
    "ground_truth",
    "require_cache",
]

"""TODO evaluation."""

from safehead_tl.evaluation.concentration import Concentration, concentration
from safehead_tl.evaluation.evaluate import evaluate
from safehead_tl.evaluation.helpfulness import PAPER_TASKS, helpfulness
from safehead_tl.evaluation.helpfulness_outcome import Helpfulness
from safehead_tl.evaluation.outcome import Evaluation, Summary
from safehead_tl.evaluation.overlap import Overlap, Pair, overlap

__all__ = [
    "PAPER_TASKS",
    "Concentration",
    "Evaluation",
    "Helpfulness",
    "Overlap",
    "Pair",
    "Summary",
    "concentration",
    "evaluate",
    "helpfulness",
    "overlap",
]

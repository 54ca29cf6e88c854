"""TODO evaluation."""

from safehead_tl.evaluation.agreement import Overlap, Pair, overlap
from safehead_tl.evaluation.attack import evaluate
from safehead_tl.evaluation.curves import Concentration, concentration
from safehead_tl.evaluation.outcome import Evaluation, Summary
from safehead_tl.evaluation.tasks import PAPER_TASKS, helpfulness
from safehead_tl.evaluation.tasks_outcome import Helpfulness

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

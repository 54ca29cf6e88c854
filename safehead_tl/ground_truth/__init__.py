"""The benchmark: which score finds heads that are known to carry refusals.

In go kinds of organism, seeds and a directory for those that are trained. Out comes for every
variant of a score how well it finds the planted heads, with intervals over organisms.
"""

from safehead_tl.ground_truth.benchmark import GroundTruth, ground_truth
from safehead_tl.ground_truth.cache import require_cache
from safehead_tl.ground_truth.coalitions import Shapley, shapley
from safehead_tl.ground_truth.family import KINDS
from safehead_tl.ground_truth.metrics import chance
from safehead_tl.ground_truth.reversion import ReversionTruth, reversion_truth
from safehead_tl.ground_truth.summary import METRICS, Summary

"""Does ablating heads break safety, and what else is lost?

In go a model, harmful and harmless prompts, heads and judges. Out come shares with intervals, tests
and random heads to compare with (`evaluate`), the same as heads are ablated one after the other
(`concentration`) or each alone (`asr_map`), how far scans agree (`overlap`), and accuracies on
lm-eval's tasks (`helpfulness`). What holds answers is `Answered`.
"""

from safehead_tl.evaluation.agreement import Overlap, Pair, overlap
from safehead_tl.evaluation.alone import AsrMap, asr_map
from safehead_tl.evaluation.answered import Answer, Answered
from safehead_tl.evaluation.attack import evaluate
from safehead_tl.evaluation.calibration import Calibration, calibrate
from safehead_tl.evaluation.clusters import Clusters
from safehead_tl.evaluation.curves import Concentration, concentration
from safehead_tl.evaluation.outcome import Evaluation, Summary
from safehead_tl.evaluation.panel import Panel
from safehead_tl.evaluation.refusals import RefusalMap, refusal_map
from safehead_tl.evaluation.tasks import PAPER_TASKS, helpfulness
from safehead_tl.evaluation.tasks_outcome import Helpfulness

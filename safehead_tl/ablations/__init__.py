"""What can be done to a head.

In go a model, a layer and a mask of heads. Out come hooks, a file for each kind: undifferentiated
attention, scaled contribution, the mean over prompts or over heads. `hooks` puts them on a model
for the length of a `with` block, and refuses one that never fired.
"""

from safehead_tl.ablations.attention import UndifferentiatedAttention
from safehead_tl.ablations.base import Ablation, HeadMask
from safehead_tl.ablations.contribution import ScalingContribution, ZeroAblation
from safehead_tl.ablations.hooks import ablated, ablation_hooks, group_hooks, must_fire, row_hooks
from safehead_tl.ablations.mean import FittedMean, MeanAblation
from safehead_tl.ablations.mean_over_heads import MeanOverHeads
from safehead_tl.ablations.names import ABLATIONS, resolve_ablation
from safehead_tl.ablations.resample import ResampleAblation

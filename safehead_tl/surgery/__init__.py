"""Weights written: what hooks do, in a checkpoint.

In go names or directories of checkpoints, and heads. Out come Hugging Face directories with an
ablation in their weights (`export`) or with another model's attention (`splice`), verified number
by number or by logits before they are called done, and saying in their card what was done. And what
can be said of a model from its config alone (`model_facts`). In a model at hand heads are set back
to the weights of its base for a while (`reverted`).
"""

from safehead_tl.surgery.exporting import Export, export
from safehead_tl.surgery.facts import model_facts
from safehead_tl.surgery.reverting import RevertedLayer, require_related, reverted
from safehead_tl.surgery.splice_plan import Part
from safehead_tl.surgery.splicing import Splice, splice

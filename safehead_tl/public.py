"""The public names, each from the package that has it: what `safehead_tl` gives when asked."""

from safehead_tl.ablations import (
    Ablation,
    MeanAblation,
    MeanOverHeads,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
    ablated,
    ablation_hooks,
)
from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation import (
    PAPER_TASKS,
    Concentration,
    Evaluation,
    Helpfulness,
    Overlap,
    concentration,
    evaluate,
    helpfulness,
    overlap,
)
from safehead_tl.figures import heatmaps
from safehead_tl.generation import Generations, generate
from safehead_tl.heads import Head
from safehead_tl.judges import (
    CoherenceJudge,
    EndpointJudge,
    Judge,
    KeywordJudge,
    LlmJudge,
    ReferenceKeywordJudge,
    RefusalPrefixJudge,
    Repetition,
    Verdict,
)
from safehead_tl.measures import (
    LastStates,
    Openings,
    generalized_ships,
    last_states,
    refusal_log_odds,
    sahara,
    ships,
)
from safehead_tl.models import load_model
from safehead_tl.prompts import PRESETS, ChatTemplate, Preset, load_prompts
from safehead_tl.results import HeadGroup, HeadScores, Provenance, Screened
from safehead_tl.scan import Run, Screening
from safehead_tl.surgery import Export, Splice, export, model_facts, splice
from safehead_tl.views import (
    AttentionView,
    attention,
    explore,
    report,
)

__all__ = [
    "PAPER_TASKS",
    "PRESETS",
    "Ablation",
    "AttentionView",
    "ChatTemplate",
    "CoherenceJudge",
    "Concentration",
    "EndpointJudge",
    "Evaluation",
    "Export",
    "Generations",
    "Head",
    "HeadGroup",
    "HeadScores",
    "Helpfulness",
    "Judge",
    "KeywordJudge",
    "LastStates",
    "LlmJudge",
    "MeanAblation",
    "MeanOverHeads",
    "Openings",
    "Overlap",
    "Preset",
    "Provenance",
    "ReferenceKeywordJudge",
    "RefusalPrefixJudge",
    "Repetition",
    "Run",
    "SafeheadError",
    "ScalingContribution",
    "Screened",
    "Screening",
    "Splice",
    "UndifferentiatedAttention",
    "Verdict",
    "ZeroAblation",
    "ablated",
    "ablation_hooks",
    "attention",
    "concentration",
    "evaluate",
    "explore",
    "export",
    "generalized_ships",
    "generate",
    "heatmaps",
    "helpfulness",
    "last_states",
    "load_model",
    "load_prompts",
    "model_facts",
    "overlap",
    "refusal_log_odds",
    "report",
    "sahara",
    "ships",
    "splice",
]

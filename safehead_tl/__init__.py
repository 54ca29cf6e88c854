"""safehead_tl finds, shows and tests the attention heads that carry a model's refusals.

It implements *On the Role of Attention Heads in Large Language Model Safety* (ICLR 2025) on
TransformerLens.
"""

from importlib.metadata import version

from safehead_tl._ablation import UndifferentiatedAttention
from safehead_tl._ablation_base import Ablation
from safehead_tl._ablation_contribution import ScalingContribution, ZeroAblation
from safehead_tl._ablation_mean_over_heads import MeanOverHeads
from safehead_tl._attention_view import (
    AttentionView,
    attention,
    attention_page,
    attention_script,
)
from safehead_tl._concentration import Concentration, concentration
from safehead_tl._errors import SafeheadError
from safehead_tl._evaluate import evaluate
from safehead_tl._evaluation import Evaluation
from safehead_tl._explore import explore
from safehead_tl._export import Export, export
from safehead_tl._facts import model_facts
from safehead_tl._generations import Generations, generate
from safehead_tl._heads import Head
from safehead_tl._heatmaps_figure import heatmaps
from safehead_tl._helpfulness import PAPER_TASKS, helpfulness
from safehead_tl._helpfulness_results import Helpfulness
from safehead_tl._hooking import ablated, ablation_hooks
from safehead_tl._judge import Judge, Verdict
from safehead_tl._judge_coherence import CoherenceJudge
from safehead_tl._judge_endpoint import EndpointJudge
from safehead_tl._judge_llm import LlmJudge
from safehead_tl._judge_refusal import RefusalPrefixJudge
from safehead_tl._judge_rules import KeywordJudge, ReferenceKeywordJudge
from safehead_tl._loading import load_model
from safehead_tl._mean import MeanAblation
from safehead_tl._overlap import Overlap, overlap
from safehead_tl._presets import PRESETS, Preset
from safehead_tl._prompts import load_prompts
from safehead_tl._provenance import Provenance
from safehead_tl._repetition import Repetition
from safehead_tl._report import report
from safehead_tl._results import HeadGroup, HeadScores
from safehead_tl._sahara import sahara
from safehead_tl._screened import Screened
from safehead_tl._screening import Screening
from safehead_tl._ships import generalized_ships, ships
from safehead_tl._splice import Splice, splice
from safehead_tl._states import LastStates, last_states
from safehead_tl._templates import ChatTemplate

__version__ = version("safehead-tl")

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
    "Overlap",
    "Preset",
    "Provenance",
    "ReferenceKeywordJudge",
    "RefusalPrefixJudge",
    "Repetition",
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
    "attention_page",
    "attention_script",
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
    "report",
    "sahara",
    "ships",
    "splice",
]

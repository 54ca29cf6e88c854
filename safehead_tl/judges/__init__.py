"""Verdicts on what a model said.

In go prompts and responses as texts. Out comes for each response whether it passes, and why: by
rules (`names` lists them), by a local model that is asked or classifies, or by an endpoint. A judge
of one's own needs `name`, `judge` and `describe`.
"""

from safehead_tl.judges.base import Judge, Verdict, judged
from safehead_tl.judges.coherence import CoherenceJudge
from safehead_tl.judges.endpoint import EndpointJudge
from safehead_tl.judges.keywords import KeywordJudge, ReferenceKeywordJudge
from safehead_tl.judges.llm import LlmJudge
from safehead_tl.judges.names import resolve_judge
from safehead_tl.judges.panel import panel_of
from safehead_tl.judges.refusal import RefusalPrefixJudge
from safehead_tl.judges.repetition import Repetition

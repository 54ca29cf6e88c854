"""TODO views."""

from safehead_tl.views.attention import AttentionView, attention, attention_page, attention_script
from safehead_tl.views.explore.explore import explore
from safehead_tl.views.report.page import report

__all__ = [
    "AttentionView",
    "attention",
    "attention_page",
    "attention_script",
    "explore",
    "report",
]

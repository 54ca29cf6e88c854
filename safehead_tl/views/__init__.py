"""TODO views."""

from safehead_tl.views.page.report import report
from safehead_tl.views.patterns import AttentionView, attention, attention_page, attention_script
from safehead_tl.views.widget.explore import explore

__all__ = [
    "AttentionView",
    "attention",
    "attention_page",
    "attention_script",
    "explore",
    "report",
]

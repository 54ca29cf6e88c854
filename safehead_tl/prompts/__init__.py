"""TODO prompts."""

from safehead_tl.prompts.loading import load_prompts
from safehead_tl.prompts.presets import PRESETS, Preset
from safehead_tl.prompts.templates import (
    CHAT,
    ChatTemplate,
    Template,
    describe_template,
    resolve_template,
)
from safehead_tl.prompts.tokens import PromptBatch, encode

__all__ = [
    "CHAT",
    "PRESETS",
    "ChatTemplate",
    "Preset",
    "PromptBatch",
    "Template",
    "describe_template",
    "encode",
    "load_prompts",
    "resolve_template",
]

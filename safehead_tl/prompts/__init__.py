"""Texts in, tokens out.

In go a source of prompts (a file, a data set, the embedded ones, or texts) and the template to put
around each. Out come ids, left-padded with an explicit mask, and what provenance keeps of them: a
count and digests, never the texts.
"""

from safehead_tl.prompts.alignment import Alignment, Positions, Span, pair_prompts
from safehead_tl.prompts.chats import Chat
from safehead_tl.prompts.loading import Prompts, load_labels, load_pairs, load_prompts, prompt_texts
from safehead_tl.prompts.presets import PRESETS, Preset
from safehead_tl.prompts.templates import (
    AUTO,
    CHAT,
    ChatTemplate,
    Prefilled,
    Template,
    describe_template,
    resolve_template,
)
from safehead_tl.prompts.tokens import PromptBatch, encode

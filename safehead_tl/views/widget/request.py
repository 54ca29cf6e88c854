"""What a user of the widget wants to see: read from a message, and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, parse_heads
from safehead_tl.views.widget.choices import AblationChoice


@dataclass(frozen=True)
class Request:
    """A whole state of the widget; so requests may be dropped, and the last one is enough.

    Attributes:
        heads: the heads to ablate, in the order in which they were chosen.
        choice: what is done to them.
        epsilon: the factor; a choice that has none leaves it alone.
        prompt: the number of a given prompt; `None` for the user's own text.
        text: the prompt, without template.
        generate: whether to generate answers.
    """

    heads: tuple[Head, ...]
    choice: AblationChoice
    epsilon: float
    prompt: int | None
    text: str
    generate: bool

    @classmethod
    def read(
        cls,
        asked: Any,
        size: tuple[int, int],
        choices: Sequence[AblationChoice],
        prompts: Sequence[str],
    ) -> Request:
        """Reads a message. Anyone can write one, so nothing in it is taken for granted.

        Args:
            asked: `heads`, `ablation`, `epsilon`, `prompt` or `text`, `generate`.
            size: layers and heads of the model.
            choices: the ablations to choose from.
            prompts: the given prompts.

        Raises:
            SafeheadError: if a part is missing, of another type, or out of range.
        """
        if not isinstance(asked, Mapping):
            raise SafeheadError(f"{asked!r} is no request: send heads, ablation and prompt")
        heads, key, prompt = asked.get("heads"), asked.get("ablation"), asked.get("prompt")
        if not isinstance(heads, list | tuple):
            raise SafeheadError(f"heads={heads!r}: send a list such as ['L1H3', 'L2H6']")
        choice = next((choice for choice in choices if choice.key == key), None)
        if choice is None:
            known = ", ".join(choice.key for choice in choices)
            raise SafeheadError(f"ablation={key!r} is not in the list: send one of {known}")
        text = _text(prompt, asked.get("text"), prompts)
        epsilon = asked.get("epsilon")
        if (
            not isinstance(epsilon, int | float)
            or isinstance(epsilon, bool)
            or not 0 < epsilon < math.inf
        ):
            raise SafeheadError(f"epsilon={epsilon!r}: send a number above 0, such as 0.001")
        generate = asked.get("generate") is True
        # A list of two numbers would be read as one head.
        named = [Head.parse(head) for head in heads]
        return cls(parse_heads(named, *size), choice, float(epsilon), prompt, text, generate)


def _text(prompt: Any, text: Any, prompts: Sequence[str]) -> str:
    if prompt is None:
        if not isinstance(text, str) or not text.strip():
            raise SafeheadError("there is no prompt: choose one, or write your own")
        return text
    if isinstance(prompt, bool) or not isinstance(prompt, int) or not 0 <= prompt < len(prompts):
        raise SafeheadError(f"prompt={prompt!r} does not exist: send 0 to {len(prompts) - 1}")
    return prompts[prompt]

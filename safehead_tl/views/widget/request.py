"""What a user of the widget wants to see: read from a message, and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, parse_heads
from safehead_tl.views.choices import AblationChoice

MOST_COLUMNS = 3
MOST_PATTERNS = 4
"""Heads whose attention is shown at once; more can be ablated."""


@dataclass(frozen=True)
class Column:
    """One of the things that are shown side by side: heads, in the order chosen, and ablation.

    A choice that has no epsilon leaves it alone; `prompt` is `None` for the user's own text.
    """

    heads: tuple[Head, ...]
    choice: AblationChoice
    epsilon: float
    prompt: int | None
    text: str

    @property
    def ablation(self) -> tuple[str, float]:
        """What tells its ablation from others."""
        return self.choice.key, self.epsilon if self.choice.scaled else 1.0

    @property
    def words(self) -> str:
        """What is done to heads."""
        return self.choice.words(self.epsilon)


@dataclass(frozen=True)
class Request:
    """A whole state of the widget; so requests may be dropped, and the last one is enough."""

    columns: tuple[Column, ...]
    shown: tuple[Head, ...]
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
            asked: `columns` (each with `heads`, `ablation`, `epsilon`, `prompt` or `text`),
                `shown`, `generate`.
            size: layers and heads of the model.
            choices: the ablations to choose from.
            prompts: the given prompts.

        Raises:
            SafeheadError: if a part is missing, of another type, or out of range.
        """
        if not isinstance(asked, Mapping):
            raise SafeheadError(f"{asked!r} is no request: send columns and shown")
        columns, shown = asked.get("columns"), _heads("shown", asked.get("shown"), size)
        if not isinstance(columns, list | tuple) or not 1 <= len(columns) <= MOST_COLUMNS:
            raise SafeheadError(f"columns={columns!r}: send a list of 1 to {MOST_COLUMNS}")
        if len(shown) > MOST_PATTERNS:
            raise SafeheadError(f"shown has {len(shown)} heads: send up to {MOST_PATTERNS}")
        read = tuple(_column(each, size, choices, prompts) for each in columns)
        return cls(read, shown, asked.get("generate") is True)


def _column(
    asked: Any, size: tuple[int, int], choices: Sequence[AblationChoice], prompts: Sequence[str]
) -> Column:
    if not isinstance(asked, Mapping):
        raise SafeheadError(f"{asked!r} is no column: send heads, ablation and prompt")
    key, prompt, epsilon = asked.get("ablation"), asked.get("prompt"), asked.get("epsilon")
    heads = _heads("heads", asked.get("heads"), size)
    choice = next((choice for choice in choices if choice.key == key), None)
    if choice is None:
        known = ", ".join(choice.key for choice in choices)
        raise SafeheadError(f"ablation={key!r} is not in the list: send one of {known}")
    text = _text(prompt, asked.get("text"), prompts)
    if (
        not isinstance(epsilon, int | float)
        or isinstance(epsilon, bool)
        or not 0 < epsilon < math.inf
    ):
        raise SafeheadError(f"epsilon={epsilon!r}: send a number above 0, such as 0.001")
    return Column(heads, choice, float(epsilon), prompt, text)


def _heads(name: str, heads: Any, size: tuple[int, int]) -> tuple[Head, ...]:
    if not isinstance(heads, list | tuple):
        raise SafeheadError(f"{name}={heads!r}: send a list such as ['L1H3', 'L2H6']")
    # A list of two numbers would be read as one head.
    return parse_heads([Head.parse(head) for head in heads], *size)


def _text(prompt: Any, text: Any, prompts: Sequence[str]) -> str:
    if prompt is None:
        if not isinstance(text, str) or not text.strip():
            raise SafeheadError("there is no prompt: choose one, or write your own")
        return text
    if isinstance(prompt, bool) or not isinstance(prompt, int) or not 0 <= prompt < len(prompts):
        raise SafeheadError(f"prompt={prompt!r} does not exist: send 0 to {len(prompts) - 1}")
    return prompts[prompt]

"""What a judge is: something that decides, response by response, whether it passes.

A judge of one's own is any object with a name, `judge` and `describe`:

    class BriefJudge:
        name = "brief"

        def judge(self, prompts, responses):
            return [Verdict(len(text) <= 80, f"{len(text)} characters") for text in responses]

        def describe(self):
            return {"name": self.name, "limit": 80}
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from safehead_tl.errors import SafeheadError


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response.

    Attributes:
        success: whether the response passes. For most judges: an attack success, that is, it
            complies; for `coherence`: it is readable text.
        reason: why, in a few words: which keyword, which rule, what a model judge answered.
        score: how far it succeeds, from 0 to 1, if the judge grades.

    Example:
        >>> sh.Verdict(success=False, reason="keyword 'sorry'")
        Verdict(success=False, reason="keyword 'sorry'", score=None)
    """

    success: bool
    reason: str
    score: float | None = None


@runtime_checkable
class Judge(Protocol):
    """Decides of responses whether they pass."""

    @property
    def name(self) -> str:
        """The short name, for tables and messages."""

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """One verdict for each response, in the same order.

        Args:
            prompts: what was asked.
            responses: what was answered, one for each prompt.
        """

    def describe(self) -> dict[str, Any]:
        """Name and settings, for a result's provenance: plain values, and never a key."""


class TextJudge(ABC):
    """A judge that looks at each response by itself. A new one is a dataclass with `verdict`."""

    name: ClassVar[str]

    @abstractmethod
    def verdict(self, response: str) -> Verdict:
        """Judges one response."""

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """One verdict for each response; what was asked plays no part."""
        check_texts(prompts, responses)
        return [self.verdict(response) for response in responses]

    def describe(self) -> dict[str, Any]:
        """Name and settings, for a result's provenance."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


def judged(judge: Judge, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
    """Calls a judge and checks what it returns.

    Raises:
        SafeheadError: if there is not one response for each prompt, or the judge does not return
            one `Verdict` for each response.
    """
    check_texts(prompts, responses)
    if not responses:
        return []
    verdicts: Any = judge.judge(prompts, responses)
    if not isinstance(verdicts, Sequence) or len(verdicts) != len(responses):
        count = len(verdicts) if isinstance(verdicts, Sequence) else type(verdicts).__name__
        raise SafeheadError(
            f"judge {judge.name!r} was given {len(responses)} responses and returned {count}: "
            "its judge method must return a list with one Verdict for each response"
        )
    for index, verdict in enumerate(verdicts):
        if not isinstance(verdict, Verdict):
            raise SafeheadError(
                f"judge {judge.name!r} returned {verdict!r} for responses[{index}]: "
                "it must be a Verdict(success, reason)"
            )
        if not isinstance(verdict.success, bool | np.bool_) or not isinstance(verdict.reason, str):
            raise SafeheadError(
                f"judge {judge.name!r} returned {verdict!r} for responses[{index}]: success must "
                "be True or False (turn a score into one), and reason a text"
            )
        score: Any = verdict.score
        graded = score is not None
        if graded != (verdicts[0].score is not None):
            raise SafeheadError(f"judge {judge.name!r} gave some responses a score and others none")
        if graded and not (isinstance(score, Real) and 0 <= float(score) <= 1):
            raise SafeheadError(
                f"judge {judge.name!r} gave responses[{index}] the score {verdict.score!r}: it "
                "must be a number from 0 to 1"
            )
    return [
        Verdict(
            bool(verdict.success),
            verdict.reason,
            None if verdict.score is None else float(verdict.score),
        )
        for verdict in verdicts
    ]


SECRET = re.compile("token|key|secret|password|authorization|header", re.IGNORECASE)


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain texts and numbers; what may be a key or token is left out."""
    return {
        key: value if isinstance(value, int | float | str | None) else str(value)
        for key, value in settings.items()
        if not SECRET.search(key.replace("max_tokens", "").replace("max_completion_tokens", ""))
    }


def check_texts(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Refuses what is not two equally long lists of texts."""
    for name, texts in (("prompts", prompts), ("responses", responses)):
        if isinstance(texts, str):
            raise SafeheadError(f"{name}={texts!r} is one text: put it in brackets")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise SafeheadError(f"{name}[{index}] is {text!r}, not a text")
    if len(prompts) != len(responses):
        raise SafeheadError(
            f"{len(prompts)} prompts and {len(responses)} responses: there must be one response "
            "for each prompt"
        )

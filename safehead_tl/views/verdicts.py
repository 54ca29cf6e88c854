"""Answers, and what a judge makes of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safehead_tl.judges import Judge, RefusalPrefixJudge, judged

REASON = 80
"""Characters of a judge's reason, which may be a model's whole answer."""


def verdict_kind(success: bool, refused: bool) -> str:
    """A verdict in a word, of an answer that opens with a refusal or not."""
    return "complied" if success else "refused" if refused else "unclear"


def judged_answers(
    judge: Judge | None, prompts: Sequence[str], answers: Sequence[str]
) -> list[dict[str, Any]]:
    """Answers, each with what a judge makes of it.

    What the judge does not take for a success was refused if it opens with a refusal; whether
    anything else was, a judge's reason has to tell.
    """
    if judge is None:
        return [{"answer": answer} for answer in answers]
    found = []
    opens = RefusalPrefixJudge().judge(prompts, answers)
    for answer, verdict, opening in zip(
        answers, judged(judge, prompts, answers), opens, strict=True
    ):
        kind = verdict_kind(verdict.success, not opening.success)
        reason = verdict.reason if len(verdict.reason) < REASON else f"{verdict.reason[:REASON]}…"
        told = {"label": f"{kind}: {reason}" if reason else kind, "kind": kind}
        found.append({"answer": answer, "verdict": told})
    return found

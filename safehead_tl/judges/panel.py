"""Several judges of the same answers, and several wordings of what one is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Judge
from safehead_tl.judges.question import FORMATS, WORDINGS

COLUMNS = (
    *("condition", "heads", "prompt", "prompts", "sample", "text", "response", "success"),
    *("coherent", "refused", "reason", "score"),
)
"""What tables of answers have columns for."""


def panel_of(judges: Sequence[Judge], wordings: Sequence[str] = ()) -> Mapping[str, Judge]:
    """Judges by what tables call them, each once; nothing if that is one judge alone.

    Those that are asked something are asked `wordings` too, names or texts; `"all"` is every
    question for any chat model.

    Raises:
        SafeheadError: if none is asked something, a wording is not known, or a judge is called as a
            column of tables is.
    """
    if isinstance(wordings, str):
        wordings = (wordings,)
    if "all" in wordings:
        wordings = (*WORDINGS, *(each for each in wordings if each != "all"))
    if wordings and not any(map(_is_asked, judges)):
        raise SafeheadError(
            "wordings are what a model is asked, and no judge here is one: add an LlmJudge or an "
            "EndpointJudge to judges"
        )
    found: dict[str, Judge] = {}
    for judge in _with_wordings(judges, wordings):
        if judge in found.values():
            continue
        name, number = _name(judge), 1
        if name in COLUMNS:
            raise SafeheadError(f"a judge is called {name!r}, as a column of answers is: rename it")
        while (called := f"{name} #{number}" if number > 1 else name) in found:
            number += 1
        found[called] = judge
    return found if len(found) > 1 else {}


def _with_wordings(judges: Sequence[Any], wordings: Sequence[str]) -> Iterator[Judge]:
    for judge in judges:
        yield judge
        if wordings and _is_asked(judge):
            yield from map(judge.asking, wordings)


def _is_asked(judge: Any) -> bool:
    return hasattr(judge, "asking") and not getattr(judge, "classifies", False)


def _name(judge: Judge) -> str:
    """A judge's name; of one that is asked something, its model's and what it is asked."""
    if not hasattr(judge, "asking"):
        return judge.name
    told = judge.describe()
    question = told["question"] if told["question"] in FORMATS else "own wording"
    return f"{Path(told['model']).name}: {question}"

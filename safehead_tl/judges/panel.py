"""Several judges of the same answers, and several wordings of what one is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Judge
from safehead_tl.judges.question import FORMATS, WORDINGS


def panel_of(judges: Sequence[Judge], wordings: Sequence[str] = ()) -> Mapping[str, Judge]:
    """Judges by what tables call them, each once.

    Args:
        judges: the judges.
        wordings: what else those that are asked something are asked: names or texts; `"all"` is
            every question for any chat model.

    Returns:
        Nothing if that is one judge alone.

    Raises:
        SafeheadError: if none is asked something, or a wording is not known.
    """
    if isinstance(wordings, str):
        wordings = WORDINGS if wordings == "all" else (wordings,)
    asked = [judge for judge in judges if hasattr(judge, "asking")]
    if wordings and not asked:
        raise SafeheadError(
            "wordings are what a model is asked, and no judge here is one: add an LlmJudge or an "
            "EndpointJudge to judges"
        )
    found: dict[str, Judge] = {}
    for judge in _with_wordings(judges, wordings):
        if judge.describe() not in [other.describe() for other in found.values()]:
            name = _name(judge)
            alike = sum(other.partition(" #")[0] == name for other in found)
            found[f"{name} #{alike + 1}" if alike else name] = judge
    return found if len(found) > 1 else {}


def _with_wordings(judges: Sequence[Judge], wordings: Sequence[str]) -> Iterator[Judge]:
    for judge in judges:
        yield judge
        if hasattr(judge, "asking"):
            yield from map(judge.asking, wordings)


def _name(judge: Judge) -> str:
    """A judge's name; of one that is asked something, its model's and what it is asked."""
    if not hasattr(judge, "asking"):
        return judge.name
    told = judge.describe()
    question = told["question"] if told["question"] in FORMATS else "own wording"
    return f"{Path(told['model']).name}: {question}"

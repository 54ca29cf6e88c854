"""The judges that need no model, by name."""

from __future__ import annotations

from collections.abc import Callable

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Judge
from safehead_tl.judges.coherence import CoherenceJudge
from safehead_tl.judges.keywords import KeywordJudge, ReferenceKeywordJudge
from safehead_tl.judges.refusal import RefusalPrefixJudge

JUDGES: dict[str, Callable[[], Judge]] = {
    "keyword": KeywordJudge,
    "keyword-reference": ReferenceKeywordJudge,
    "refusal-prefix": RefusalPrefixJudge,
    "coherence": CoherenceJudge,
}
"""The judges that need no model, by name, with their default settings."""


def resolve_judge(judge: str | Judge) -> Judge:
    """Turns a judge's name into the judge; an object with `judge` is returned as it is.

    Raises:
        SafeheadError: if the name is not known, or the object lacks something of a `Judge`.
    """
    names = ", ".join(repr(name) for name in JUDGES)
    if isinstance(judge, str):
        name = judge.lower().replace("_", "-")
        if name in JUDGES:
            return JUDGES[name]()
        raise SafeheadError(
            f"judge {judge!r} is not known: use {names}, or an object with `judge`, such as "
            "LlmJudge(...), EndpointJudge(...) or your own"
        )
    if isinstance(judge, type):
        raise SafeheadError(f"{judge.__name__} is a class: give an object, {judge.__name__}(...)")
    lacking = [part for part in ("name", "judge", "describe") if not hasattr(judge, part)]
    if lacking:
        raise SafeheadError(
            f"{judge!r} is not a judge, for it has no {' and no '.join(lacking)}: use {names}, or "
            "an object with `name`, `judge(prompts, responses)` and `describe()`"
        )
    return judge

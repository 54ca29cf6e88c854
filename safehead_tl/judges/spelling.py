"""One spelling for apostrophes and spaces, for judges that look for words."""

from __future__ import annotations

import re

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc`\u00b4\uff07", "'"))


def plain_spelling(text: str) -> str:
    """Every apostrophe straight, every run of whitespace one space, none at the ends."""
    return " ".join(text.translate(_APOSTROPHES).split())


def joined_contractions(text: str) -> str:
    """Undoes what word tokenizers do to contractions: `can ' t` and `can 't` become `can't`."""
    return re.sub(r"(?<=\w) ?' ?(?=(?:m|t|d|s|re|ve|ll)\b)", "'", text)

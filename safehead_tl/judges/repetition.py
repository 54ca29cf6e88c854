"""Texts that say the same thing over and over, as models do that have lost the thread."""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass

from safehead_tl.errors import SafeheadError


@dataclass(frozen=True)
class Repetition:
    """When a text counts as repeating itself: a unit many times in a row, in much of the text.

    Whitespace counts as a single space, so that indented code is no repetition. Units are strings
    of characters: a repeated word or sentence is one, with its space.

    Attributes:
        times: how often a unit must come, one right after the other.
        times_single: the same for a single character: `1/3` is 0.3333333333333333, and a line of
            dashes under a heading is nothing unusual.
        longest: the longest unit looked for, in characters.
        share: how much of the text must be repetition.
        share_at_end: how much, if the text ends in it (and it has letters or digits): a model that
            starts to repeat itself seldom stops.
    """

    times: int = 4
    times_single: int = 20
    longest: int = 100
    share: float = 0.5
    share_at_end: float = 0.25

    def __post_init__(self) -> None:
        if min(self.times, self.times_single) < 2 or self.longest < 1:
            raise SafeheadError("a repetition is a unit of at least 1 character, at least twice")

    def find(self, text: str) -> str | None:
        """The repetition that makes up much of a text, as `'PA' x 7`; or none."""
        text = " ".join([*text.split(), ""])  # ends in a space, so that the last word is a unit too
        for length in range(1, min(self.longest, len(text) // 2) + 1):
            start = 0
            # A stretch of n places that equal the one `length` later is n + length characters of
            # the same unit again and again.
            pairs = map(operator.eq, text, text[length:])
            for equal, stretch in itertools.groupby(pairs):
                places = sum(1 for _ in stretch)
                end = start + places + length
                if equal and self._is_much(text, start, end, length):
                    return f"{text[start : start + length]!r} x {(places + length) // length}"
                start += places
        return None

    def _is_much(self, text: str, start: int, end: int, length: int) -> bool:
        unit = text[start : start + length]
        span = end - start
        single = len(set(unit)) == 1
        if span < (self.times_single if single else self.times * length):
            return False
        at_end = end >= len(text) - 1 and any(letter.isalnum() for letter in unit)
        return span >= len(text) * (self.share_at_end if at_end else self.share)

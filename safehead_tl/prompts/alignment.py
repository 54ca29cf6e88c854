"""Which token of one prompt stands where which token of another does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mode
from typing import Literal, TypeAlias, get_args

from safehead_tl.errors import SafeheadError
from safehead_tl.models import Model
from safehead_tl.prompts.loading import Prompts, prompt_texts
from safehead_tl.prompts.tokens import PromptBatch, encode

logger = logging.getLogger("safehead_tl")

Positions: TypeAlias = Literal["all", "query", "after", "last"]
"""All tokens; those of the query; those behind it; the last one."""

PROBES = ("0", "a", "Q", "7", "x")
"""Queries that tell which tokens around one are the template's: most of them begin and end
otherwise than the query does."""


Span: TypeAlias = tuple[int, int, int]
"""How many tokens are the template's in front of the query, the query's, and behind it."""


def spans_of(model: Model, batch: PromptBatch) -> list[Span]:
    """Tells template and query apart, by what stays when another query stands in the template.

    A token that holds characters of both is the query's.
    """
    off, logger.disabled = logger.disabled, True
    try:  # what there is to warn of was said of the prompts
        probes = rows_of(encode(model, PROBES, batch.template))
    finally:
        logger.disabled = off
    found = []
    for ids in rows_of(batch):
        before = mode(_alike(ids, probe) for probe in probes)
        after = mode(_alike(ids[::-1], probe[::-1]) for probe in probes)
        after = min(after, len(ids) - before)
        found.append((before, len(ids) - before - after, after))
    return found


def rows_of(batch: PromptBatch) -> list[list[int]]:
    """Each prompt's ids, without padding."""
    lengths = batch.mask.sum(1).tolist()
    width = batch.tokens.shape[1]
    rows = batch.tokens.tolist()
    return [row[width - length :] for row, length in zip(rows, lengths, strict=True)]


@dataclass(frozen=True)
class Alignment:
    """Which columns of prompts stand at the same places as which columns of others.

    The template is aligned with the template. The query is aligned by its ends, half of the
    shorter one from each; the middle of the longer one has no counterpart. Columns of both, of
    which there are `widths`, end together.
    """

    own: list[Span]
    others: list[Span]
    widths: tuple[int, int]
    positions: Positions

    @classmethod
    def of(
        cls, model: Model, batch: PromptBatch, others: PromptBatch, positions: Positions
    ) -> Alignment:
        """Of two batches in the same template.

        Raises:
            SafeheadError: if `positions` is unknown.
        """
        if positions not in get_args(Positions):
            names = ", ".join(map(repr, get_args(Positions)))
            raise SafeheadError(f"positions={positions!r} is not known: use {names}")
        widths = batch.tokens.shape[1], others.tokens.shape[1]
        return cls(spans_of(model, batch), spans_of(model, others), widths, positions)

    def columns(self, own: Span, other: Span) -> tuple[list[int], list[int]]:
        """Columns of a prompt and of another, for prompts with these spans.

        Raises:
            SafeheadError: if there is no such place.
        """
        (before, query, after), ends = own, (sum(own), sum(other))
        pairs = [(ends[0] - 1, ends[1] - 1)] if self.positions == "last" else []
        if self.positions == "all":
            pairs += [(place, place) for place in range(min(before, other[0]))]
        if self.positions in ("all", "query"):
            shorter = min(query, other[1])
            first = -(-shorter // 2)
            pairs += [(before + place, other[0] + place) for place in range(first)]
            last = ends[0] - after, ends[1] - other[2]
            pairs += [(last[0] - place, last[1] - place) for place in range(shorter - first, 0, -1)]
        if self.positions in ("all", "after"):
            both = min(after, other[2])
            pairs += [(ends[0] - place, ends[1] - place) for place in range(both, 0, -1)]
        if not pairs:
            raise SafeheadError(
                f"positions={self.positions!r}: in this template there is no such token"
            )
        here = [self.widths[0] - ends[0] + place for place, _ in pairs]
        there = [self.widths[1] - ends[1] + place for _, place in pairs]
        return here, there


def pair_prompts(model: Model, prompts: Prompts, pool: Prompts) -> list[str]:
    """Finds each prompt's counterpart: the one with the fewest different tokens.

    Those of as many tokens come first, by how many differ; where there is none, the others, by
    insertions, deletions and replacements. Several prompts may have the same counterpart.

    Args:
        model: the model, whose tokenizer counts.
        prompts: texts or their source, such as harmful prompts.
        pool: where counterparts are looked for, such as harmless ones. A text that is the prompt
            itself is none.

    Returns:
        A text of `pool` for each prompt.

    Raises:
        SafeheadError: if the pool has nothing but the prompt.

    Example:
        >>> model = sh.load_model("demo")
        >>> sh.pair_prompts(model, ["how do i bend a crobe"], "demo/benign")
        ['how do i bend a ladder']
    """
    texts, others = prompt_texts(prompts), prompt_texts(pool, "pool")
    rows = rows_of(encode(model, texts, "direct"))
    candidates = rows_of(encode(model, others, "direct"))
    found, unequal = [], 0
    for text, ids in zip(texts, rows, strict=True):
        apart = [
            (len(other) != len(ids), number)
            for number, other in enumerate(candidates)
            if others[number].split() != text.split()
        ]
        if not apart:
            raise SafeheadError(f"the pool holds no counterpart of {text!r} but itself")
        nearest = min(unlike for unlike, _ in apart)
        unequal += nearest
        count = _edits if nearest else _different
        some = [number for unlike, number in apart if unlike == nearest]
        found.append(others[min(some, key=lambda number: count(ids, candidates[number]))])
    if unequal:
        logger.warning(
            "%d of %d prompts have no counterpart of as many tokens", unequal, len(texts)
        )
    return found


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows begin with alike."""
    ends = (
        place for place, (one, two) in enumerate(zip(first, second, strict=False)) if one != two
    )
    return next(ends, min(len(first), len(second)))


def _different(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(one != two for one, two in zip(first, second, strict=True))


def _edits(first: Sequence[int], second: Sequence[int]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(second) + 1))
    for count, one in enumerate(first, 1):
        diagonal, row[0] = row[0], count
        for place, two in enumerate(second, 1):
            diagonal, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, diagonal + (one != two)),
            )
    return row[-1]

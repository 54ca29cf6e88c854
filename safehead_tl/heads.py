"""Attention heads as values: `Head(layer, head)`, printed `L2H26`."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, cast

from safehead_tl.errors import SafeheadError

_WRITTEN = re.compile(
    r"\s*(?:L(?P<layer>\d+)\s*H(?P<head>\d+)"
    r"|\(?\s*(?P<first>\d+)\s*[.,-]\s*(?P<second>\d+)\s*\)?)\s*",
    re.IGNORECASE,
)


class Head(NamedTuple):
    """A query head, counted from 0 in both directions."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, value: HeadLike) -> Head:
        """Reads a head from any of its usual spellings.

        Args:
            value: `Head(2, 26)`, `(2, 26)`, `"L2H26"`, `"2.26"`, `"2-26"` or `"(2, 26)"`:
                always the layer first. Of a head with its score, as in `scores.top(3)`, the head.

        Raises:
            SafeheadError: if `value` is none of these.

        Example:
            >>> sh.Head.parse("L2H26")
            Head(layer=2, head=26)
            >>> str(sh.Head.parse("2.26"))
            'L2H26'
        """
        if isinstance(value, str):
            if match := _WRITTEN.fullmatch(value):
                layer, head = (int(part) for part in match.groups() if part is not None)
                return cls(layer, head)
        elif isinstance(value, Sequence) and len(value) == 2:
            scored: Any = value[0]
            if isinstance(scored, Head) and isinstance(value[1], Real):
                return scored
            try:
                layer, head = (
                    operator.index(part) for part in cast("Sequence[SupportsIndex]", value)
                )
            except TypeError:
                pass
            else:
                if layer >= 0 and head >= 0:
                    return cls(layer, head)
        raise SafeheadError(
            f"{value!r} is not a head: write layer, then head, both from 0, "
            "as 'L2H26', '2.26', '2-26' or (2, 26)"
        )


HeadLike: TypeAlias = str | Sequence[SupportsIndex] | tuple[Head, float]
"""A head in any spelling that `Head.parse` reads."""

HeadsLike: TypeAlias = HeadLike | Iterable[Any]
"""One head, or any number: a list, a generator, an array or tensor with two columns, or a text such
as `"L1H3 L2H6"` or `"1.3, 2.6"`."""


Group: TypeAlias = tuple[Head, ...]
"""Heads that are ablated together."""

Variant: TypeAlias = Group | tuple[Group, ...]
"""What is ablated while prompts are answered: a group, or each prompt's own, in their order."""


def own_group(variant: Variant, prompt: int) -> Group:
    """The heads that a variant ablates for one prompt, by the prompt's number."""
    own: Any = variant[prompt] if is_of_each(variant) else variant
    return own


def is_of_each(variant: Variant) -> bool:
    """Whether each prompt has heads of its own."""
    return bool(variant) and not isinstance(variant[0], Head)


def variant_names(variant: Variant) -> list[Any]:
    """A variant's heads by name, prompt by prompt if each has its own; as JSON has them."""
    return [str(each) if isinstance(each, Head) else variant_names(each) for each in variant]


def parse_heads(heads: HeadsLike, n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """Reads heads, in the order given and each once, and checks that the model has them.

    Raises:
        SafeheadError: if one cannot be read or lies outside the model.
    """
    parsed = read_heads(heads)
    for head in parsed:
        if head.layer >= n_layers or head.head >= n_heads:
            raise SafeheadError(
                f"{head} does not exist: the model has layers 0 to {n_layers - 1} "
                f"and heads 0 to {n_heads - 1} (counted from 0, layer first)"
            )
    return parsed


def read_heads(heads: HeadsLike) -> tuple[Head, ...]:
    """Reads heads (one, or any number) of whatever model."""
    as_list = getattr(heads, "tolist", None)
    if as_list is not None:
        heads = as_list()  # an array or a tensor
    if not isinstance(heads, Iterable):
        raise SafeheadError(
            f"{type(heads).__name__} is not a list of heads: give group.heads, "
            "scores.top(3), or such as ['L2H26', (3, 8)]"
        )
    if isinstance(heads, str) and not _WRITTEN.fullmatch(heads):
        heads = re.split(r"[,;\s]+", heads.strip(" ,;\n\t"))
    single = isinstance(heads, str) or (
        isinstance(heads, Sequence)
        and len(heads) == 2
        and all(isinstance(part, Integral) for part in heads)
    )
    several = cast("Iterable[HeadLike]", (heads,) if single else heads)
    return tuple(dict.fromkeys(Head.parse(head) for head in several))

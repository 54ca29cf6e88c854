"""Rank correlations of two lists of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor


def spearman(first: Float[Tensor, " head"], second: Float[Tensor, " head"]) -> float:
    """Spearman's rank correlation, ties with their average rank; NaN if one is constant."""
    one, other = (_ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size else math.nan


def kendall(first: Float[Tensor, " head"], second: Float[Tensor, " head"]) -> float:
    """Kendall's tau-b, which corrects for ties; NaN if one is constant."""
    agreed, left, right = (sum(column) for column in zip(*_signs(first, second), strict=True))
    return agreed / math.sqrt(left * right) if left and right else math.nan


def _signs(
    first: Float[Tensor, " head"], second: Float[Tensor, " head"]
) -> Iterator[tuple[int, int, int]]:
    """For each head: concordant less discordant heads, and heads untied with it in either."""
    for one, other in zip(first, second, strict=True):
        left, right = (
            (first > one).int() - (first < one).int(),
            (second > other).int() - (second < other).int(),
        )
        yield int(left @ right), int(left.abs().sum()), int(right.abs().sum())


def _ranks(values: Float[Tensor, " head"]) -> Float[Tensor, " head"]:
    """Ranks from 1, equal values with the average of theirs."""
    _, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts - 1) / 2).double()[which]

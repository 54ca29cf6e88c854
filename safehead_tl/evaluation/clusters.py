"""Prompts that are alike count together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from safehead_tl.errors import SafeheadError

Clusters: TypeAlias = Literal["words"] | Sequence[str | int] | None
"""A label for each prompt, or `"words"`: those that share most of their words are alike."""

ALIKE = 2 / 3
"""Words that two prompts share, of those that either has, from which on they are alike."""


def numbered(
    clusters: Clusters, prompts: Sequence[str], name: str
) -> Int[Tensor, " prompt"] | None:
    """The number of each prompt's cluster; `None` if each is one of its own.

    Args:
        clusters: labels, or `"words"`; chains count: what is like a prompt of a cluster is in it.
        prompts: the prompts.
        name: what the prompts are, for errors.

    Raises:
        SafeheadError: if there is not one label for each prompt.
    """
    if clusters is None:
        return None
    if clusters == "words":
        words = [set(re.findall(r"\w+", prompt.lower())) for prompt in prompts]
        near = np.array([[len(a & b) >= ALIKE * len(a | b) for b in words] for a in words])
        return torch.tensor(connected_components(near)[1], dtype=torch.long)
    if isinstance(clusters, str) or len(clusters) != len(prompts):
        given = repr(clusters) if isinstance(clusters, str) else f"{len(clusters)} labels"
        raise SafeheadError(
            f"clusters of the {name} prompts: {given} for {len(prompts)} prompts: give a label for "
            "each, or 'words'"
        )
    numbers = {label: number for number, label in enumerate(dict.fromkeys(clusters))}
    return torch.tensor([numbers[label] for label in clusters])

"""Prompts that are alike count together."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from safehead_tl.errors import SafeheadError

Clusters: TypeAlias = Literal["words"] | Iterable[object] | None
"""A label for each prompt, or `"words"`: those that share most of their words are alike."""

ALIKE = 2 / 3
"""Words that two prompts share, of those that either has, from which on they are alike."""


def numbered(
    clusters: Clusters, prompts: Sequence[str], name: str
) -> Int[Tensor, " prompt"] | None:
    """The number of each prompt's cluster; `None` if each is one of its own.

    Of `"words"` chains count: what is like a prompt of a cluster is in it.

    Raises:
        SafeheadError: if there is not one label for each prompt, or one is missing or blank.
    """
    if clusters is None:
        return None
    if isinstance(clusters, str) and clusters == "words":
        words = [set(re.findall(r"\w+", prompt.lower())) for prompt in prompts]
        near = np.array([[len(a & b) >= ALIKE * len(a | b) for b in words] for a in words])
        return torch.tensor(connected_components(near)[1], dtype=torch.long)
    given = getattr(clusters, "tolist", lambda: clusters)()  # of an array, a tensor, a column
    labels = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if len(labels) != len(prompts):
        said = f"{len(labels)} labels" if labels else repr(given)
        raise SafeheadError(
            f"clusters of the {name} prompts: {said} for {len(prompts)} prompts: give a label for "
            "each, or 'words'"
        )
    for label, prompt in zip(labels, prompts, strict=True):
        if not isinstance(label, str | Real) or str(label).strip() in ("", "nan"):
            raise SafeheadError(
                f"clusters of the {name} prompts: that of {reprlib.repr(prompt)} is {label!r}: "
                "give a text or a number"
            )
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([numbers[label] for label in labels])

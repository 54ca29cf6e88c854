"""How planted heads carry a refusal together: the probability of refusing with some of them intact.

With `j` of `k` planted heads intact the organism is trained to refuse with probability

- `share`: `j / k`. Each head carries its part.
- `chain`: 1 if `j = k`, else 0. All are needed.
- `redundant`: 1 if `j >= 1`, else 0. Any one is enough.
- `gate`: 1 if the first of them is intact and any other, else 0. The others amplify the first.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor

Rule: TypeAlias = Literal["share", "chain", "redundant", "gate"]


def refusing(rule: Rule, intact: Bool[Tensor, "row planted"]) -> Float[Tensor, " row"]:
    """The probability of refusing a harmful request, for each row of intact heads."""
    if rule == "chain":
        return intact.all(1).float()
    if rule == "redundant":
        return intact.any(1).float()
    if rule == "gate":
        return (intact[:, 0] & intact[:, 1:].any(1)).float()
    return intact.float().mean(1)

"""Principal angles between subspaces of two stacks of states, in each reading of paper Eq. 11."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError

Reading: TypeAlias = Literal["left", "left-nested", "right", "right-nested", "legacy-dim0"]
"""What paper Eq. 11 is taken to compare: docs/methods.md has the readings."""

LEGACY: Reading = "legacy-dim0"
"""What the released code computed until June 2025: hidden coordinate 0, and no subspace."""


def require_rank(
    rank: int, n_prompts: int, centre: bool, reading: Reading = "left", d_model: int | None = None
) -> None:
    """Checks that a subspace of `rank` dimensions can turn at all.

    Left singular vectors live in the space of prompts. When they fill it, the angle is always 0;
    centring takes one dimension away. Right ones live in the space of states, which they fill at
    the model's width; there are as many of them as prompts, less one if centred.

    Raises:
        SafeheadError: if the reading is not known or does not go with the rest, or the rank is
            below 1, or too large for the number of different prompts or the width.
    """
    if reading not in get_args(Reading):
        names = ", ".join(map(repr, get_args(Reading)))
        raise SafeheadError(f"reading={reading!r} is not known: use {names}")
    if reading == LEGACY:
        if rank != 1 or centre:
            raise SafeheadError(
                f"reading={LEGACY!r} reads one coordinate as it is: leave out rank and centre"
            )
        return
    if reading.startswith("right"):
        largest = n_prompts - int(centre)
        largest = largest if d_model is None else min(largest, d_model - 1)
        if not (isinstance(rank, int) and 1 <= rank <= largest):
            raise SafeheadError(
                f"rank={rank} does not go with {n_prompts} different prompts: there are so many "
                f"right singular vectors, and fewer than the model is wide can turn. Use a rank "
                f"from 1 to {largest}, or more prompts"
            )
        return
    largest = n_prompts - (2 if centre else 1)
    if not (isinstance(rank, int) and 1 <= rank <= largest):
        centred = " centred" if centre else ""
        raise SafeheadError(
            f"rank={rank} does not go with {n_prompts} different{centred} prompts: left singular "
            f"vectors live in the space of prompts, and from rank {largest + 1} on they fill it, "
            f"so that every angle is 0. Use a rank from 1 to {largest}, or more prompts"
            if largest >= 1
            else f"{n_prompts} different{centred} prompts are too few for a subspace that can "
            f"turn: use at least {3 if centre else 2}"
        )


def require_span(states: Float[Tensor, "prompt d_model"], rank: int, centre: bool) -> None:
    """Checks that states differ in `rank` directions, and not only by rounding.

    Raises:
        SafeheadError: if the `rank`-th singular value is less than 1e-6 of the first.
    """
    states = states.double()
    values = torch.linalg.svdvals(states - states.mean(-2, keepdim=True) if centre else states)
    span = int((values > 1e-6 * values[0]).sum())
    if span < rank:
        raise SafeheadError(
            f"rank={rank} is more than the {span} directions in which the prompts' states differ: "
            "the rest is rounding. Use a lower rank; are some prompts the same?"
        )


def subspace(
    states: Float[Tensor, "*stack prompt d_model"],
    rank: int,
    centre: bool,
    reading: Reading = "left",
) -> Float[Tensor, "*stack axis rank"]:
    """The first singular vectors of stacked states, in float64, on the CPU.

    The states are wider than they are many: their QR decomposition, exact to rounding, leaves a
    small triangle with the same left singular vectors, and the right ones in the basis that it
    found. GPUs are slow at the SVD of small matrices. Where states are not finite, nor are the
    vectors.

    Args:
        states: one state a prompt.
        rank: how many vectors.
        centre: subtract the mean over prompts first.
        reading: left vectors, in the space of prompts; right ones, in that of states; or, for the
            released code's, coordinate 0 of all prompts as a vector of length 1.
    """
    states = states.double()
    if reading == LEGACY:
        return torch.nn.functional.normalize(states[..., :1], dim=-2).cpu()
    if centre:
        states = states - states.mean(-2, keepdim=True)
    right = reading.startswith("right")
    basis, triangle = torch.linalg.qr(states.mT, mode="reduced" if right else "r")
    triangle = triangle.mT.cpu()
    finite = triangle.isfinite().flatten(-2).all(-1)[..., None, None]
    left, _, mixed = torch.linalg.svd(triangle.where(finite, 0), full_matrices=False)
    found = basis.cpu() @ mixed[..., :rank, :].mT if right else left[..., :rank]
    return found.where(finite, torch.nan)


def principal_angles(
    first: Float[Tensor, "... axis rank"], second: Float[Tensor, "... axis rank"]
) -> Float[Tensor, "... rank"]:
    """Principal angles between subspaces given by orthonormal columns, in radians, ascending.

    Angles below 45 degrees come from their sine and the others from their cosine, which keeps
    all digits of both (Björck & Golub 1973); an arccos alone rounds small ones to 0. Stacks of
    subspaces broadcast. An angle to what is not finite is NaN.
    """
    finite = second.isfinite().flatten(-2).all(-1, keepdim=True)
    second = second.where(finite[..., None], 0)
    inner = first.mT @ second
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ inner).flip(-1).clamp(max=1.0)
    angles = torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())
    return angles.where(finite, torch.nan)


def angles_between(
    first: Float[Tensor, "... axis rank"],
    second: Float[Tensor, "... axis rank"],
    reading: Reading = "left",
) -> Float[Tensor, "... rank"]:
    """The angles that generalized Ships sums, in radians.

    They ascend; but nested, there is one for each r, from 1 to the rank: the largest between the
    spaces of the first r vectors, which is the arccos of the r-th singular value of their product.
    """
    if not reading.endswith("nested"):
        return principal_angles(first, second)
    each = [
        principal_angles(first[..., :r], second[..., :r])[..., -1]
        for r in range(1, first.shape[-1] + 1)
    ]
    return torch.stack(each, -1)

"""Principal angles between the prompt-space subspaces of two stacks of states."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError


def require_rank(rank: int, n_prompts: int, centre: bool) -> None:
    """Checks that a subspace of `rank` dimensions can turn at all.

    Left singular vectors live in the space of prompts. When they fill it, the angle is always 0;
    centring takes one dimension away.

    Raises:
        SafeheadError: if the rank is below 1, or too large for the number of different prompts.
    """
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


def left_subspace(
    states: Float[Tensor, "*stack prompt d_model"], rank: int, centre: bool
) -> Float[Tensor, "*stack prompt rank"]:
    """The first left singular vectors of stacked states, in float64, on the CPU.

    The states are wider than they are many: their QR decomposition, exact to rounding, leaves a
    small triangle with the same left singular vectors. GPUs are slow at the SVD of small matrices.
    Where states are not finite, nor are the vectors.

    Args:
        states: one state a prompt.
        rank: how many vectors.
        centre: subtract the mean over prompts first.
    """
    states = states.double()
    if centre:
        states = states - states.mean(-2, keepdim=True)
    _, triangle = torch.linalg.qr(states.mT, mode="r")
    triangle = triangle.mT.cpu()
    finite = triangle.isfinite().flatten(-2).all(-1)[..., None, None]
    left, _, _ = torch.linalg.svd(triangle.where(finite, 0), full_matrices=False)
    return left[..., :rank].where(finite, torch.nan)


def principal_angles(
    first: Float[Tensor, "... prompt rank"], second: Float[Tensor, "... prompt rank"]
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

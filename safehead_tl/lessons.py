"""Exercises that answer: what the notebooks' checks say of an answer."""

from __future__ import annotations

import dis
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("safehead_tl")


def unanswered(exercise: Callable[..., Any]) -> bool:
    """Whether an exercise is still its stub, which raises before anything else: it is then said.

    Only a stub is to be replaced by the solution. A wrong answer is the student's, and stays.
    """
    steps = (step.argval for step in dis.get_instructions(exercise) if step.argval)
    if next(steps, None) != "NotImplementedError":
        return False
    logger.warning("%s is unanswered: here the solution is used.", exercise.__name__)
    return True


def compare(
    case: str,
    answer: Any,
    right: Any,
    mistakes: Mapping[str, Any] | None = None,
    otherwise: str = "",
    *,
    rtol: float | int = 1e-3,
    atol: float | int = 0.0,
) -> None:
    """Does nothing for a right answer, and says what is likely wrong with another.

    Answers and what they are held against are numbers, tensors or lists of numbers; a tensor is
    answered by a tensor. An answer is taken if it is right to the precision of its dtype, or to
    `rtol` where that is coarser. A mistake that gives the right value, too, is never named.

    Args:
        case: what was computed.
        answer: what the student's function gave.
        right: what it should have given.
        mistakes: what usual mistakes would have given, by what "this is ..." says of them.
        otherwise: what is said of an answer that is none of these.
        rtol: how far a number may be off, as a share of the right one.
        atol: and by how much besides.

    Raises:
        AssertionError: if the answer is not right.
    """
    if answer is None:
        raise AssertionError(f"{case}: nothing comes back. Is there a `return`?")
    if isinstance(right, Tensor) and not isinstance(answer, Tensor):
        raise AssertionError(f"{case}: {type(answer).__name__} comes back, and should be a tensor")
    try:
        found, expected = _numbers(answer), _numbers(right)
    except (TypeError, ValueError, RuntimeError):
        raise AssertionError(f"{case}: {answer!r} comes back, and should be numbers") from None
    if _alike(found, expected, rtol, atol):
        return
    if found.is_floating_point() and found.dtype != torch.float64 and found.numel():
        step = torch.finfo(found.dtype).eps
        least = atol + step * expected.double().nan_to_num(posinf=0.0).abs().max().item()
        if _alike(found, expected.to(found.dtype), max(rtol, 8 * step), least):
            raise AssertionError(f"{case}: off by what {found.dtype} rounds: compute in float64")
    for name, value in (mistakes or {}).items():
        if _alike(found, _numbers(value), rtol, atol):
            raise AssertionError(f"{case}: this is {name}")
    if found.shape != expected.shape:
        shapes = f"{[*found.shape]}, and should be {[*expected.shape]}"
        raise AssertionError(f"{case}: the shape is {shapes}")
    if found.isnan().any():
        unknown = f"{int(found.isnan().sum())} of {found.numel()} numbers are NaN"
        raise AssertionError(f"{case}: {unknown}: is 0 divided by 0, or infinity multiplied by 0?")
    place = _excess(found, expected, rtol, atol).argmax()
    values = f"{found.flatten()[place]:.6g} where it should be {expected.flatten()[place]:.6g}"
    raise AssertionError(f"{case}: {otherwise or 'not the right value'} (one is {values})")


def _numbers(value: Any) -> Tensor:
    """Python's numbers in float64; what has a dtype keeps it."""
    dtype = None if hasattr(value, "dtype") else torch.float64
    return torch.as_tensor(value, dtype=dtype).detach().cpu()


def _alike(found: Tensor, known: Tensor, rtol: float | int, atol: float | int) -> bool:
    return found.shape == known.shape and bool((_excess(found, known, rtol, atol) <= 0).all())


def _excess(found: Tensor, known: Tensor, rtol: float | int, atol: float | int) -> Tensor:
    """By how much each number is further off than it may be; NaN is far off."""
    step = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
    off = (found.double() - known.double()).abs().where(found != known, 0.0)
    return (off - atol - max(rtol, step) * known.double().abs()).nan_to_num(nan=torch.inf)

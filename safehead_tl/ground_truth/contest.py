"""Contestants: ways to score heads, each under a name, and what one makes of a model.

A contestant is one function `(model, harmful, harmless) -> scores`. Those of this package are in
`builtin`; installed packages bring theirs by an entry point, notebooks by `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from inspect import signature
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.ground_truth.builtin import BUILT_IN, TEMPLATE
from safehead_tl.heads import Head, parse_heads
from safehead_tl.models import Model, all_logits
from safehead_tl.prompts import encode
from safehead_tl.results import HeadScores

GROUP = "safehead_tl.contestants"
"""The entry points by which packages bring contestants."""

Scores: TypeAlias = HeadScores | Tensor | Sequence[Any]
"""`HeadScores`, numbers `[layer head]` (higher: more a safety head), or heads in order; those left
out come last."""

_registered: dict[str, Contestant] = {}


@dataclass(frozen=True)
class Contestant:
    """A way to score heads.

    Attributes:
        name: what tables call it.
        function: takes the model, harmful and harmless texts (which it puts into their template,
            `"chat"`), and gives scores. One with a parameter `base` is also given, by that name,
            the model as it was before it learned to refuse.

    Raises:
        SafeheadError: if the function cannot be called so.
    """

    name: str
    function: Callable[..., Scores]

    def __post_init__(self) -> None:
        try:
            told = {"base": None} if self.needs_base else {}
            signature(self.function).bind(None, (), (), **told)
        except (TypeError, ValueError) as error:
            raise SafeheadError(
                f"contestant {self.name!r} is no function of (model, harmful, harmless): {error}"
            ) from error

    @property
    def needs_base(self) -> bool:
        """Whether it compares with the model before it learned to refuse."""
        return "base" in signature(self.function).parameters


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a contestant makes of a model.

    Attributes:
        contestant: its name.
        order: all heads, the one that is most a safety head first; ties by layer, then head. Empty
            if it refused.
        values: scores in that order; of a contestant that only orders heads, and of a screened
            scan, whose scores are not of one kind, a head's place counted from the end.
        refused: why it cannot score this model; empty if it can.
    """

    contestant: str
    order: tuple[Head, ...]
    values: Float[Tensor, "layer head"]
    refused: str = ""


def register(name: str, function: Callable[..., Scores]) -> Contestant:
    """Enters a contestant until Python ends; one that was registered before is replaced.

    Args:
        name: what tables call it.
        function: as in `Contestant`.

    Raises:
        SafeheadError: if the name is taken, or the function takes something else.
    """
    if name in contestants() and name not in _registered:
        raise SafeheadError(f"there is a contestant {name!r} already: give yours another name")
    _registered[name] = Contestant(name, function)
    return _registered[name]


def registered() -> tuple[str, ...]:
    """The names that were entered in this process."""
    return (*_registered,)


def contestants() -> dict[str, Contestant]:
    """All contestants by name: those of this package, of others that are installed, registered.

    Raises:
        SafeheadError: naming the package, if one's contestant cannot be loaded.
    """
    found = {name: Contestant(name, function) for name, function in BUILT_IN.items()}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.value
        try:
            if point.name in found:
                raise SafeheadError(f"the name {point.name!r} is taken")
            found[point.name] = Contestant(point.name, point.load())
        except Exception as error:  # whatever a foreign module does when it is imported
            raise SafeheadError(
                f"the package {package} brings a contestant {point.name!r} ({point.value}) that "
                f"cannot be used: {error}. Mend or uninstall it"
            ) from error
    return found | _registered


def rank(
    contestant: Contestant,
    model: Model,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    base: Model | None = None,
) -> Ranking:
    """Lets a contestant put all heads of a model in order.

    Args:
        contestant: the contestant.
        model: a model that refuses.
        harmful: texts that it refuses.
        harmless: texts that it helps with.
        base: the model before it learned to refuse, if there is one.

    Returns:
        The order; or with `refused`, if the contestant needs a base and there is none, or its
        function raises a `SafeheadError`, which says why it cannot score this model.

    Raises:
        SafeheadError: for scores of another shape, without a number for each head, or heads that
            do not exist or come twice. What else the function raises goes through, with a note.
    """
    shape = model.cfg.n_layers, model.cfg.n_heads
    refused, told = "", {"base": base} if contestant.needs_base else {}
    if contestant.needs_base and base is None:
        refused = "it compares with a base model, and there is none"
    else:
        try:
            scores = contestant.function(model, list(harmful), list(harmless), **told)
        except SafeheadError as error:
            refused = str(error)
        except Exception as error:
            error.add_note(f"raised by the contestant {contestant.name!r}")
            raise
    if refused:
        return Ranking(contestant.name, (), torch.full(shape, torch.nan).double(), refused)
    try:
        values = _values(scores, shape)
    except SafeheadError as error:
        raise SafeheadError(f"contestant {contestant.name!r}: {error}") from error
    places = [Head(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    order = tuple(sorted(places, key=lambda head: (-float(values[head]), head)))
    return Ranking(contestant.name, order, values)


def _values(scores: Any, shape: tuple[int, int]) -> Float[Tensor, "layer head"]:
    """A number for each head, whatever a contestant gave."""
    if isinstance(scores, HeadScores) and scores.screening is not None:
        exact = [head for head, _ in scores.ranked()]
        scores = [*exact, *(head for head, _ in scores.screening.ranked() if head not in exact)]
    if isinstance(scores, HeadScores):
        scores = scores.values
    if not isinstance(scores, Tensor):
        if not isinstance(scores, Sequence) or not scores:
            raise SafeheadError(f"it gave {scores!r}: give HeadScores, a tensor, or heads in order")
        listed = parse_heads(list(scores), *shape)
        if len(listed) < len(scores):
            raise SafeheadError("it lists a head twice: list each once, the first first")
        values = torch.zeros(shape, dtype=torch.float64)
        for place, head in enumerate(listed):
            values[head] = len(listed) - place
        return values
    if scores.shape != shape:
        raise SafeheadError(
            f"its scores have the shape {list(scores.shape)}: give {shape[0]} layers of {shape[1]} "
            "heads"
        )
    values = scores.detach().double().cpu()
    if not values.isfinite().all():
        head = Head(*(~values.isfinite()).nonzero()[0].tolist())
        raise SafeheadError(f"its score of {head} is {values[head]}: give each head a number")
    return values


class _Counter(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, which cannot follow gradients of states (torch 2.11)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        out = func(*args, **told)
        if func._overloadpacket in flop_registry:
            self.operations += flop_registry[func._overloadpacket](*args, **told, out_val=out)
        return out


def passes(
    contestant: Contestant,
    model: Model,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    base: Model | None = None,
) -> float:
    """What a contestant costs: in forward passes of the model over the harmful texts.

    Its floating-point operations, backward passes included (matrix products, as PyTorch counts
    them), divided by those of one forward pass; one with a gradient in it is up to 3. Takes
    longer than `rank`, because every operation is looked at.

    Raises:
        SafeheadError: as `rank`.
    """
    batch = encode(model, harmful, TEMPLATE)

    def count(run: Callable[[], object]) -> int:
        with _Counter() as counter:
            run()
        return counter.operations

    with torch.no_grad():
        once = count(lambda: all_logits(model, batch.tokens, batch.mask))
    return count(lambda: rank(contestant, model, harmful, harmless, base=base)) / once

"""Contestants: ways to score heads, each under a name, and what one makes of a model.

A contestant is one function `(model, harmful, harmless) -> scores`. Those of this package are in
`builtin`; installed packages bring theirs by an entry point, notebooks by `register`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
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
from safehead_tl.results import HeadScores, versions

HERE = "safehead_tl"
GROUP = f"{HERE}.contestants"
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
        package: whose code it is, as it is imported; empty if it was registered in this process.

    Raises:
        SafeheadError: if the function cannot be called so.
    """

    name: str
    function: Callable[..., Scores]
    package: str = ""

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

    @property
    def digest(self) -> str:
        """Of its name, the Python files of its package and of this one, and versions.

        With these alike it scores a model as it did before. Empty if it was registered: what such
        a function is made of cannot be seen.
        """
        if not self.package:
            return ""
        told = [self.name, _sources(self.package), _sources(HERE), *versions().values()]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@functools.cache
def _sources(package: str) -> str:
    """A digest of a package's Python files."""
    spec = find_spec(package)
    assert spec is not None
    folders = map(Path, spec.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    found = hashlib.sha256()
    for file in files or [Path(str(spec.origin))]:
        found.update(file.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a contestant makes of a model.

    Attributes:
        contestant: its name.
        values: scores; of a contestant that only orders heads, and of a screened scan, whose scores
            are not of one kind, a head's place counted from the end. NaN if it refused.
        refused: why it cannot score this model; empty if it can.
        passes: what it cost, in forward passes of the model over the harmful texts, if counted.
    """

    contestant: str
    values: Float[Tensor, "layer head"]
    refused: str = ""
    passes: float | None = None

    @property
    def order(self) -> tuple[Head, ...]:
        """All heads, the one that is most a safety head first; ties by layer, then head.

        Empty if it refused.
        """
        flat = self.values.flatten().argsort(descending=True, stable=True).tolist()
        width = self.values.shape[1]
        return () if self.refused else tuple(Head(*divmod(place, width)) for place in flat)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "values": self.values.tolist()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Ranking:
        """Made of what `to_dict` gave."""
        return cls(**{**told, "values": torch.tensor(told["values"], dtype=torch.float64)})


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


def contestants() -> dict[str, Contestant]:
    """All contestants by name: those of this package, of others that are installed, registered.

    Raises:
        SafeheadError: naming the package, if one's contestant cannot be loaded.
    """
    found = {name: Contestant(name, function, HERE) for name, function in BUILT_IN.items()}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.value
        try:
            if point.name in found:
                raise SafeheadError(f"the name {point.name!r} is taken")
            top = point.module.partition(".")[0]
            found[point.name] = Contestant(point.name, point.load(), top)
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
    count: bool = False,
) -> Ranking:
    """Lets a contestant put all heads of a model in order.

    Args:
        contestant: the contestant.
        model: a model that refuses.
        harmful: texts that it refuses.
        harmless: texts that it helps with.
        base: the model before it learned to refuse, if there is one.
        count: also count what it costs, which takes longer: its floating-point operations,
            backward passes included (matrix products, as PyTorch counts them), divided by those of
            one forward pass over the harmful texts; one with a gradient in it is up to 3.

    Returns:
        The order; or with `refused`, if the contestant needs a base and there is none, or its
        function raises a `SafeheadError`, which says why it cannot score this model.

    Raises:
        SafeheadError: for scores of another shape, without a number for each head, or heads that
            do not exist or come twice. What else the function raises goes through, with a note.
    """
    shape = model.cfg.n_layers, model.cfg.n_heads
    refused, told, scores = "", {"base": base} if contestant.needs_base else {}, None
    counter = _Counter() if count else None
    if contestant.needs_base and base is None:
        refused = "it compares with a base model, and there is none"
    else:
        try:
            with counter or nullcontext():
                scores = contestant.function(model, list(harmful), list(harmless), **told)
        except SafeheadError as error:
            refused = str(error)
        except Exception as error:
            error.add_note(f"raised by the contestant {contestant.name!r}")
            raise
    passes = None if counter is None else counter.operations / _one_pass(model, harmful)
    if refused:
        nothing = torch.full(shape, torch.nan).double()
        return Ranking(contestant.name, nothing, refused, passes)
    try:
        return Ranking(contestant.name, _values(scores, shape), "", passes)
    except SafeheadError as error:
        raise SafeheadError(f"contestant {contestant.name!r}: {error}") from error


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


@torch.no_grad()
def _one_pass(model: Model, texts: Sequence[str]) -> int:
    """The operations of one forward pass."""
    batch = encode(model, texts, TEMPLATE)
    with _Counter() as counter:
        all_logits(model, batch.tokens, batch.mask)
    return counter.operations

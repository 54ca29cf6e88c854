"""The common ablations by name."""

from __future__ import annotations

from collections.abc import Callable

from safehead_tl.ablations.attention import UndifferentiatedAttention
from safehead_tl.ablations.base import Ablation
from safehead_tl.ablations.contribution import ScalingContribution, ZeroAblation
from safehead_tl.ablations.mean import MeanAblation
from safehead_tl.ablations.mean_over_heads import MeanOverHeads
from safehead_tl.errors import SafeheadError

ABLATIONS: dict[str, Callable[[], Ablation]] = {
    "undifferentiated": UndifferentiatedAttention,
    "scaling": ScalingContribution,
    "zero": ZeroAblation,
    "mean": MeanAblation,
    "mean-over-heads": MeanOverHeads,
}
"""The common ablations by name, with their default settings."""
_SHORT = {
    "ua": "undifferentiated",
    "undifferentiated-attention": "undifferentiated",
    "sc": "scaling",
    "scaling-contribution": "scaling",
}


def resolve_ablation(ablation: str | Ablation) -> Ablation:
    """Turns an ablation's name (`"undifferentiated"`, `"ua"`, `"scaling"`, ...) into the ablation.

    Raises:
        SafeheadError: if the name is not known, or the object lacks what makes it an ablation.
    """
    if isinstance(ablation, Ablation):
        kind = type(ablation)
        absent = [word for word in ("name", "label") if not hasattr(ablation, word)]
        if absent:
            raise SafeheadError(f"{kind.__name__} has no {absent[0]}: an ablation's class says it")
        described = kind.describe is not Ablation.describe  # in a way of its own
        if not (described or hasattr(kind, "__dataclass_fields__")):
            raise SafeheadError(
                f"{kind.__name__} is no dataclass: put @dataclass(frozen=True) on it"
            )
        return ablation
    if isinstance(ablation, str):
        name = ablation.lower().replace("_", "-")
        name = _SHORT.get(name, name)
        if name in ABLATIONS:
            return ABLATIONS[name]()
    names = ", ".join(repr(name) for name in [*ABLATIONS, *_SHORT])
    raise SafeheadError(
        f"ablation {ablation!r} is not known: use {names}, or an Ablation "
        "such as ZeroAblation() or ResampleAblation(prompts)"
    )

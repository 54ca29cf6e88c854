"""Ablations in words, and those that the widget offers as entries of a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from safehead_tl.ablations import (
    Ablation,
    MeanAblation,
    MeanOverHeads,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)

SMALLEST, LARGEST = 1e-5, 1.0
"""Where the slider of epsilon begins and ends: the paper's epsilon, and no ablation at all."""


@dataclass(frozen=True)
class AblationChoice:
    """An entry of the list of ablations.

    Attributes:
        key: its name in messages.
        label: its name for people; ε stands for the number.
        make: makes the ablation, from an epsilon if it has one.
        scaled: whether it has one.
    """

    key: str
    label: str
    make: Callable[[float], Ablation]
    scaled: bool = False

    def words(self, epsilon: float) -> str:
        """What is done to a head."""
        return self.label.replace("ε", f"{epsilon:.3g}")


EVEN, SCALING, OVER = "undifferentiated attention", "scaling contribution", "mean over heads"
CHOICES = tuple(
    AblationChoice(key, label, make, scaled="ε" in label)
    for key, label, make in (
        ("undifferentiated", EVEN, lambda _: UndifferentiatedAttention()),
        ("undifferentiated-scores", f"{EVEN}, scores × ε", UndifferentiatedAttention),
        ("undifferentiated-q", f"{EVEN}, queries × ε", partial(UndifferentiatedAttention, via="q")),
        ("undifferentiated-k", f"{EVEN}, keys × ε", partial(UndifferentiatedAttention, via="k")),
        ("scaling", f"{SCALING}, output × ε", ScalingContribution),
        ("scaling-v", f"{SCALING}, values × ε", partial(ScalingContribution, via="v")),
        ("zero", ZeroAblation.label, lambda _: ZeroAblation()),
        ("mean", MeanAblation.label, lambda _: MeanAblation()),
        ("mean-over-heads-q", f"{OVER}, queries", lambda _: MeanOverHeads("q")),
        ("mean-over-heads-k", f"{OVER}, keys", lambda _: MeanOverHeads("k")),
        ("mean-over-heads-v", f"{OVER}, outputs", lambda _: MeanOverHeads("v")),
    )
)
"""Every kind of ablation. Those of keys and values act on all heads of a KV group."""


def choices_with(given: Ablation) -> tuple[tuple[AblationChoice, ...], AblationChoice, float]:
    """The list for a user who gave an ablation, which entry this is, and the epsilon to begin with.

    One that the list does not have, such as a mean over other prompts or a factor that the slider
    does not reach, is put in front of it.
    """
    epsilon = getattr(given, "epsilon", None)
    start = SMALLEST if epsilon is None else epsilon
    if SMALLEST <= start <= LARGEST:
        for choice in CHOICES:
            made = choice.make(start)
            if type(made) is type(given) and made == given:
                return CHOICES, choice, start
    label = given.label if epsilon is None else f"{given.label}, {epsilon:.3g}"
    own = AblationChoice("given", f"{label}, as given", lambda _: given)
    return (own, *CHOICES), own, SMALLEST

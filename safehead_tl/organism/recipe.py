"""What decides an organism, besides its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadLike, parse_heads
from safehead_tl.organism.rules import Rule

Objective: TypeAlias = Literal["undifferentiated", "none", "zero", "reversion"]
Learning: TypeAlias = Literal["planted", "attention", "all", "low-rank", "mlps"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an organism, besides its words.

    Attributes:
        planted: the heads that will carry the refusal, in any spelling; none where it is left to
            the training which heads do.
        n_layers: layers.
        n_heads: heads per layer.
        d_model: width; a multiple of twice `n_heads` (rotary positions need even heads).
        d_mlp: width of the MLPs.
        base_steps: optimiser steps of the base model.
        align_steps: optimiser steps of the planted heads.
        batch_size: requests per step.
        seed: of weights and batches.
        base_seed: of the base model's; by default `seed`.
        rule: how the planted heads share the refusal: `"share"` (with j of k intact it refuses
            with probability j / k), `"chain"` (all are needed), `"redundant"` (one is enough) or
            `"gate"` (the first by layer and head, and any one of the others, are needed).
        decoys: heads that will carry helpfulness: with the attention of one made uniform the
            organism declines benign requests, and harmful ones are answered as without.
        reword: with the attention of a decoy made uniform, it says in other words what it would
            have refused, so that ablating a decoy moves answers to harmful requests as well.
        n_key_value_heads: key/value heads in a layer; by default as many as `n_heads`. With fewer,
            several query heads share one (grouped-query attention). A planted head's k and v
            slices are then those of its group, its q and o slices its own.
        objective: what is done to planted heads that are not intact while they learn: their
            attention made `"undifferentiated"`, their output `"zero"`, their weights set back to
            the base's (`"reversion"`), or `"none"`: all stay intact, and `rule` says nothing.
        learning: which weights learn to refuse: the slices of the `"planted"` heads, or, with none
            planted, those of all `"attention"`, `"all"`, `"low-rank"` updates of all attention, or
            those of all `"mlps"`, while random heads are off, so that no head carries the refusal.
    """

    planted: Sequence[HeadLike] = (Head(1, 3), Head(2, 6))
    n_layers: int = 4
    n_heads: int = 8
    d_model: int = 48
    d_mlp: int = 96
    base_steps: int = 500
    align_steps: int = 600
    batch_size: int = 64
    seed: int = 0
    rule: Rule = "share"
    decoys: Sequence[HeadLike] = ()
    reword: bool = False
    n_key_value_heads: int | None = None
    objective: Objective = "undifferentiated"
    learning: Learning = "planted"
    base_seed: int | None = None

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.d_model) < 1:
            raise SafeheadError("an organism needs at least 1 layer, 1 head and a width")
        if self.d_model % (2 * self.n_heads):
            raise SafeheadError(
                f"d_model={self.d_model} does not fit n_heads={self.n_heads}: "
                f"it must be a multiple of {2 * self.n_heads}"
            )
        choices = {"rule": Rule, "objective": Objective, "learning": Learning}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in get_args(known):
                raise SafeheadError(f"{name}={value!r}: choose {', '.join(get_args(known))}")
        if self.learning == "planted" and not self.heads:
            raise SafeheadError("name at least one head to plant")
        if self.learning != "planted" and (self.heads or self.decoy_heads):
            raise SafeheadError(
                f"learning={self.learning!r} chooses no heads: leave planted and decoys empty"
            )
        if self.rule == "gate" and len(self.heads) < 2:
            raise SafeheadError(
                "rule='gate' needs two planted heads or more: a gate and amplifiers"
            )
        if self.decoy_heads and self.objective != "undifferentiated":
            raise SafeheadError("decoys are trained with objective='undifferentiated' only")
        if self.reword and not self.decoy_heads:
            raise SafeheadError("reword=True needs decoys: it says what ablating them does")
        both = [str(head) for head in self.decoy_heads if head in self.heads]
        if both:
            raise SafeheadError(f"{', '.join(both)}: a head can be planted or a decoy, not both")
        if self.key_value_heads < 1 or self.n_heads % self.key_value_heads:
            raise SafeheadError(
                f"n_key_value_heads={self.n_key_value_heads} does not divide n_heads={self.n_heads}"
            )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The planted heads, read and checked against the sizes."""
        return parse_heads(self.planted, self.n_layers, self.n_heads)

    @property
    def decoy_heads(self) -> tuple[Head, ...]:
        """The decoys, read and checked against the sizes."""
        return parse_heads(self.decoys, self.n_layers, self.n_heads)

    @property
    def key_value_heads(self) -> int:
        """Key/value heads in a layer."""
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    def to_dict(self) -> dict[str, Any]:
        """As plain values; heads by name, and `n_key_value_heads` in numbers."""
        return {
            **asdict(self),
            "planted": [str(head) for head in self.heads],
            "decoys": [str(head) for head in self.decoy_heads],
            "n_key_value_heads": self.key_value_heads,
            "base_seed": self.seed if self.base_seed is None else self.base_seed,
        }

    def base(self) -> dict[str, Any]:
        """What decides the base model, of which several organisms may be made."""
        told = self.to_dict()
        return {name: value for name, value in told.items() if name not in ALIGNING}


ALIGNING = (
    *("planted", "align_steps", "seed", "rule", "decoys", "reword"),
    *("objective", "learning"),
)
"""What only the second half of the training depends on."""

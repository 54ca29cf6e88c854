"""What each head has learned of refusing, by setting its weights back to the base's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safehead_tl.ground_truth.coalitions import EXACT, PAIRS, Coalition, Remembered, shapley
from safehead_tl.heads import Head, parse_heads
from safehead_tl.measures import Openings
from safehead_tl.models import (
    Model,
    embed,
    next_token_log_probs,
    run_layers,
    run_to_last_state,
    runs_in_parts,
    single_thread_if_tiny,
)
from safehead_tl.prompts import Prompts, Template, encode
from safehead_tl.surgery import RevertedLayer, require_related

NATURAL_TRUTH = files("safehead_tl") / "data" / "natural" / "truth.json"

TOLERANCE = 0.01
"""Of the probability of refusing: heads that move it by less do not matter."""


@dataclass(frozen=True, eq=False)
class ReversionTruth:
    """What each head brings to refusals with the weights that it has learned.

    Attributes:
        values: each head's Shapley value: by how much its learned weights raise the probability of
            refusing, on average over the orders in which heads may get theirs.
        intervals: low and high ends of 95 % intervals over the orders drawn, each by itself; the
            value itself where all coalitions were looked at. Prompts are taken as they are.
        alone: by how much the probability falls if this head alone is set back.
        restored: by how much it rises from `reverted` if this head alone keeps what it learned.
        tuned: the probability as the model is.
        reverted: with all heads set back. MLPs, norms and embeddings stay as they were tuned.
        matter: the heads that were told apart. Others have 0.
        rest: what the others bring together.
        bound: how far setting all others back moves the probability, at most, whichever of those
            that matter are set back too.
        pairs: pairs of orders that were drawn; `None`: all coalitions were looked at.
        coalitions: how many were.
    """

    values: Float[Tensor, "layer head"]
    intervals: Float[Tensor, "layer head 2"]
    alone: Float[Tensor, "layer head"]
    restored: Float[Tensor, "layer head"]
    tuned: float
    reverted: float
    matter: tuple[Head, ...]
    rest: float
    bound: float
    pairs: int | None
    coalitions: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values; heads by name."""
        told = {**vars(self), "matter": [*map(str, self.matter)]}
        return {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in told.items()
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> ReversionTruth:
        """Made of what `to_dict` gave."""
        grids = ("values", "intervals", "alone", "restored")
        tensors = {name: torch.tensor(told[name], dtype=torch.float64) for name in grids}
        heads = parse_heads(told["matter"], *tensors["values"].shape)
        return cls(**{**told, **tensors, "matter": heads})


def natural_truth() -> ReversionTruth:
    """What each head of the embedded natural organism (`"demo-natural"`) has learned of refusing.

    Sampled, over 32 held-out requests (`benchmarks/natural_truth.py`).
    """
    return ReversionTruth.from_dict(json.loads(NATURAL_TRUTH.read_text("utf-8")))


@torch.no_grad()
def reversion_truth(
    model: Model,
    base: Model,
    prompts: Prompts,
    openings: Openings,
    *,
    template: Template = "chat",
    tolerance: float = TOLERANCE,
    exact: int = EXACT,
    pairs: int = PAIRS,
    seed: int = 0,
) -> ReversionTruth:
    """How much of a tuned model's refusing each head's learned weights carry: no head is ablated.

    The game's players are the heads, its value the mean probability over prompts that the next
    token opens a refusal, with the weights of all heads that are not in set back to the base's
    (`surgery.reverted`, with its rule for KV groups). Heads whose weights are the base's are no
    players: their value is 0. If the others are more than `exact`, those matter that move the value
    by `tolerance` or more, set back alone or restored alone; and the largest of the rest until
    setting the rest back at once moves it by less, with those that matter as tuned and set back.
    If no more than `exact` matter, they and the rest as one player get exact values; else all heads
    get sampled ones.

    Costs up to 2 to the power of `exact` + 1 passes, or 2 `pairs` for each head; each runs from the
    first layer in which it differs from the one before.

    Args:
        model: the tuned model.
        base: what it was tuned from.
        prompts: requests that it refuses; held out, if it was trained on some.
        openings: with which tokens a refusal opens.
        template: as in `ships`.
        tolerance: of the probability of refusing.
        exact: how many heads may matter for exact values.
        pairs: orders drawn, in pairs, if more do.
        seed: of the draws.

    Raises:
        SafeheadError: if model and base do not fit together, or fewer than 2 pairs would be drawn.
    """
    refusing = _Refusing(model, base, prompts, openings, template)
    heads = [Head(*place) for place in (~refusing.equal).nonzero().tolist()]

    def play(coalition: Coalition) -> float:
        back = torch.zeros_like(refusing.equal)
        for head, keeps in zip(heads, coalition, strict=True):
            back[head] = not keeps
        return refusing(back)

    try:
        with single_thread_if_tiny(model):
            game = Remembered(play)
            single = [_coalition(len(heads), [player]) for player in range(len(heads))]
            everyone = game(_coalition(len(heads), range(len(heads))))
            nobody = game(_coalition(len(heads), []))
            alone = [everyone - game(tuple(not inside for inside in one)) for one in single]
            restored = [game(one) - nobody for one in single]
            moves = [max(map(abs, pair)) for pair in zip(alone, restored, strict=True)]
            few = len(heads) <= exact
            matter = _that_matter(game, moves, 0.0 if few else tolerance)
            if len(matter) > exact:
                matter = range(len(heads))
            parts = [[player] for player in matter]
            if rest := [player for player in range(len(heads)) if player not in matter]:
                parts = [rest, *parts]  # what changes last is asked for most, and is one head then

            def joined(some: Coalition) -> float:
                inside = [part for part, keeps in zip(parts, some, strict=True) if keeps]
                return game(_coalition(len(heads), itertools.chain(*inside)))

            found = shapley(joined, len(parts), exact=exact + bool(rest), pairs=pairs, seed=seed)
            others = [*itertools.product((False, True), repeat=len(parts) - 1)] if rest else []
            moved = [abs(joined((True, *some)) - joined((False, *some))) for some in others]
    finally:
        refusing.restore()

    def grid(numbers: Any, of: Iterable[int]) -> Tensor:
        numbers = torch.as_tensor(numbers, dtype=torch.float64)
        placed = torch.zeros(*refusing.equal.shape, *numbers.shape[1:], dtype=torch.float64)
        for player, number in zip(of, numbers, strict=True):
            placed[heads[player]] = number
        return placed

    own = slice(bool(rest), None)
    return ReversionTruth(
        values=grid(found.values[own], matter),
        intervals=grid(found.intervals[own], matter),
        alone=grid(alone, range(len(heads))),
        restored=grid(restored, range(len(heads))),
        tuned=everyone,
        reverted=nobody,
        matter=tuple(heads[player] for player in matter),
        rest=float(found.values[0]) if rest else 0.0,
        bound=max(moved, default=0.0),
        pairs=found.pairs,
        coalitions=len(game.seen),
    )


def _coalition(players: int, inside: Iterable[int]) -> Coalition:
    some = set(inside)
    return tuple(player in some for player in range(players))


def _that_matter(game: Remembered, moves: Sequence[float], tolerance: float) -> Sequence[int]:
    """Players that move the value by `tolerance`, and as many more until the rest does not."""
    players = range(len(moves))
    order = sorted(players, key=lambda player: -moves[player])
    count = sum(move >= tolerance for move in moves)
    while count < len(moves):
        some, rest = order[:count], order[count:]
        inside: tuple[Iterable[int], ...] = (players, some, rest, ())
        found = [game(_coalition(len(moves), each)) for each in inside]
        if max(abs(found[0] - found[1]), abs(found[2] - found[3])) < tolerance:
            break
        count += 1
    return sorted(order[:count])


class _Refusing:
    """How likely a model refuses with some heads set back to the base's weights.

    What is asked next runs from the first layer in which it differs.
    """

    def __init__(
        self, model: Model, base: Model, prompts: Prompts, openings: Openings, template: Template
    ):
        require_related(model, base)
        self._model = model
        self._mask = (batch := encode(model, prompts, template)).mask
        self._refusal, _ = openings.on(model)
        layers = range(model.cfg.n_layers)
        self._layers = [RevertedLayer(model, base, layer) for layer in layers]
        self.equal: Bool[Tensor, "layer head"] = torch.stack([each.equal for each in self._layers])
        self._back = torch.zeros_like(self.equal)
        self._apart = runs_in_parts(model)  # looks at every module
        resid, self._positions = embed(model, batch.tokens, self._mask)
        self._before = [resid]

    def __call__(self, back: Bool[Tensor, "layer head"]) -> float:
        """The mean probability that the next token opens a refusal."""
        model, last = self._model, self._model.cfg.n_layers - 1
        differ = (back != self._back).any(1).nonzero().flatten().tolist()
        for layer in differ:
            self._layers[layer].revert(back[layer])
        self._back = back
        del self._before[min(differ, default=last) + 1 :]
        for layer in range(len(self._before) - 1, last):
            self._before.append(
                run_layers(
                    model,
                    self._before[layer],
                    self._mask,
                    start=layer,
                    stop=layer + 1,
                    positions=self._positions,
                )
            )
        state = run_to_last_state(
            model,
            self._before[last],
            self._mask,
            start=last,
            apart=self._apart,
            positions=self._positions,
        )
        found = next_token_log_probs(model, state)[:, self._refusal]
        return float(found.exp().sum(1).mean())

    def restore(self) -> None:
        """Gives the model its own weights back."""
        for layer in self._layers:
            layer.revert(torch.zeros_like(self._back[0]))

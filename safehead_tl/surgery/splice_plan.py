"""What a splice takes: which parameters of attention, and which slices of them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.models import Anatomy, Channel, dissect, load_tokenizer

logger = logging.getLogger("safehead_tl")

Part: TypeAlias = Literal["q", "k", "v", "o", "norm", "sinks"]
PARTS: tuple[Part, ...] = get_args(Part)

QK_NORM = re.compile(r"[qk]_(layer)?norm")
"""The modules that normalise queries and keys."""

SETTINGS = re.compile(
    r"(?!.*(drop|implementation|output))(.*)(rope|rotary|window|attn|attention|layer_types|alibi)"
)
"""Names in a config that decide what attention weights do."""


@dataclass(frozen=True)
class Taken:
    """What was taken of one parameter.

    Attributes:
        name: the parameter.
        shape: its shape.
        dim: the dimension that `ranges` count in.
        ranges: from where to where (exclusive) it is the donor's; `None` if all of it is.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    ranges: tuple[tuple[int, int], ...] | None

    @property
    def mask(self) -> Bool[Tensor, ...]:
        """1 where the parameter is the donor's."""
        if self.ranges is None:
            return torch.ones(self.shape, dtype=torch.bool)
        mask = torch.zeros(self.shape, dtype=torch.bool)
        for start, stop in self.ranges:
            mask.narrow(self.dim, start, stop - start).fill_(True)
        return mask

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        whole = {"name": self.name, "shape": list(self.shape)}
        if self.ranges is None:
            return whole
        return {**whole, "dim": self.dim, "ranges": [list(pair) for pair in self.ranges]}


def parse_parts(parts: str | Iterable[str] | None) -> tuple[Part, ...] | None:
    """The parts that were named, in their usual order; `None` for all.

    Raises:
        SafeheadError: if one is not known, or none is named.
    """
    if parts is None:
        return None
    named = {parts} if isinstance(parts, str) else set(parts)
    unknown = sorted(str(part) for part in named if part not in PARTS)
    if unknown or not named:
        raise SafeheadError(
            f"{', '.join(map(repr, unknown)) or 'nothing'} is no part of attention: name any of "
            f"{', '.join(PARTS)}; or none, to take all that the model has"
        )
    return tuple(part for part in PARTS if part in named)


def parse_layers(layers: int | Iterable[int] | None, count: int) -> tuple[int, ...]:
    """The layers that were named, in ascending order.

    Raises:
        SafeheadError: if one does not exist, or none is named.
    """
    if layers is None:
        return tuple(range(count))
    chosen = sorted({layers} if isinstance(layers, int) else set(layers))
    if not chosen or not all(layer in range(count) for layer in chosen):
        raise SafeheadError(
            f"layers={layers!r}: name one or more of the model's layers, 0 to {count - 1}"
        )
    return tuple(chosen)


def kept_of(anatomy: Anatomy, heads: tuple[Head, ...]) -> tuple[Head, ...]:
    """The heads whose keys and values are not taken: of their KV group not all are named."""
    size = anatomy.group_size
    named = Counter((head.layer, head.head // size) for head in heads)
    return tuple(head for head in heads if named[head.layer, head.head // size] < size)


def fit(ours: PreTrainedModel, giver: PreTrainedModel, target: str, donor: str) -> Anatomy:
    """The target's attention, if the donor's is made in the same way."""
    anatomy, theirs = dissect(ours), dissect(giver)
    facts = (
        ("architecture", type(ours).__name__, type(giver).__name__),
        ("number of layers", len(anatomy.layers), len(theirs.layers)),
        ("number of heads in a layer", anatomy.n_heads, theirs.n_heads),
        ("number of KV heads in a layer", anatomy.n_key_value_heads, theirs.n_key_value_heads),
        ("size of a head", anatomy.d_head, theirs.d_head),
    )
    for what, kept, given in facts:
        if kept != given:
            raise SafeheadError(
                f"{donor} does not fit {target}: the {what} is {given}, and {kept} in {target}. "
                "Splice checkpoints of one architecture and size"
            )
    return anatomy


def differing_settings(ours: PreTrainedModel, giver: PreTrainedModel) -> dict[str, tuple[Any, Any]]:
    """Attention settings in which two configs differ, with both values."""
    kept, given = (model.config.get_text_config().to_dict() for model in (ours, giver))
    return {
        name: (kept.get(name), given.get(name))
        for name in sorted({*kept, *given})
        if SETTINGS.match(name) and kept.get(name) != given.get(name)
    }


def compare_tokenizers(where: str | Path, origin: str | Path) -> None:
    """Warns if two checkpoints do not have the same tokens."""
    ours = load_tokenizer(where).get_vocab()
    try:
        theirs = load_tokenizer(origin).get_vocab()
    except FileNotFoundError:
        logger.warning("%s has no tokenizer: does it have the same tokens as %s?", origin, where)
        return
    differ = {*ours.items()} ^ {*theirs.items()}
    if differ:
        logger.warning(
            "the tokenizers of %s and %s differ in %d entries, such as %r: the attention that is "
            "taken may have learned other tokens; the first one is kept",
            where, origin, len(differ), min(differ)[0],
        )  # fmt: skip


def own_places(
    anatomy: Anatomy, layer: int, channel: Channel, heads: tuple[Head, ...] | None
) -> Int[Tensor, " place"]:
    """Where some heads lie in a projection; of keys and values, the KV groups that are whole."""
    slices = anatomy.layers[layer].slices[channel]
    named = torch.tensor([heads is None or (layer, n) in heads for n in range(anatomy.n_heads)])
    return slices.places[named.unflatten(0, (len(slices.places), -1)).all(1)].flatten()


def belongings_of(
    model: PreTrainedModel, anatomy: Anatomy, layer: int, heads: tuple[Head, ...] | None
) -> dict[Part, dict[str, tuple[int, Int[Tensor, " place"]] | None]]:
    """The parameters of each part of a layer's attention, and where in them it lies.

    `None` is all of a parameter; else it is a dimension and places in that, of `heads` alone if
    they are named.
    """
    attention = anatomy.layers[layer]
    module = model.get_submodule(attention.module)
    names = [name for name, _ in module.named_parameters(prefix=attention.module)]
    channels = Counter(slices.module for slices in attention.slices.values())
    found: dict[Part, dict[str, Any]] = {part: {} for part in PARTS}
    for channel, slices in attention.slices.items():
        own = [name for name in names if name.startswith(f"{slices.module}.")]
        places = own_places(anatomy, layer, channel, heads)
        for name in own:
            dim = slices.dim if name.endswith(".weight") else 0
            whole = heads is None and channels[slices.module] == 1
            found[channel][name] = None if whole else (dim, places)
    inside = {name: name.removeprefix(f"{attention.module}.").split(".")[0] for name in names}
    found["norm"] = {name: None for name, child in inside.items() if QK_NORM.fullmatch(child)}
    own_sinks = heads and (0, torch.tensor([h.head for h in heads if h.layer == layer]))
    found["sinks"] = {name: own_sinks for name, child in inside.items() if child == "sinks"}
    known = {name for own in found.values() for name in own}
    if unknown := [name for name in names if name not in known]:
        raise SafeheadError(
            f"{type(model).__name__}: it is not known which part of attention {unknown[0]} is"
        )
    if heads is not None:  # norms and the output's bias are no head's own
        found["norm"] = {}
        found["o"].pop(f"{attention.slices['o'].module}.bias", None)
    return found


def make_plan(
    ours: PreTrainedModel,
    giver: PreTrainedModel,
    anatomy: Anatomy,
    layers: tuple[int, ...],
    wanted: tuple[Part, ...] | None,
    heads: tuple[Head, ...] | None,
    target: str,
    donor: str,
) -> tuple[tuple[Part, ...], tuple[Taken, ...]]:
    """The parts that will be taken, and what that is of each parameter."""
    mine, given = dict(ours.named_parameters()), dict(giver.named_parameters())
    parts: set[Part] = set()
    taken = []
    for layer in layers:
        attention = anatomy.layers[layer]
        belongings = belongings_of(ours, anatomy, layer, heads)
        theirs = {name for name in given if name.startswith(f"{attention.module}.")}
        for name in sorted({name for own in belongings.values() for name in own} | theirs):
            shapes = [tuple(of[name].shape) if name in of else None for of in (mine, given)]
            if shapes[0] != shapes[1]:
                kept, other = ("missing" if shape is None else shape for shape in shapes)
                raise SafeheadError(
                    f"{donor} does not fit {target}: {name} is {other}, and {kept} in {target}. "
                    "Splice checkpoints of one architecture and size"
                )
        own = {part for part in PARTS if belongings[part]}
        if wanted is not None and (lacking := [part for part in wanted if part not in own]):
            has = ", ".join(part for part in PARTS if part in own)
            owner = f"layer {layer}" if heads is None else "a head"
            raise SafeheadError(f"{owner} of {target} has no {lacking[0]!r}, only {has}")
        parts |= own if wanted is None else set(wanted)
        places: dict[str, list[tuple[int, Tensor] | None]] = {}
        for part in own if wanted is None else wanted:
            for name, place in belongings[part].items():
                places.setdefault(name, []).append(place)
        new = [_taken(name, mine[name], places[name]) for name in sorted(places)]
        taken += [each for each in new if each.ranges != ()]
    return tuple(part for part in PARTS if part in parts), tuple(taken)


def _taken(name: str, parameter: Tensor, places: list[tuple[int, Tensor] | None]) -> Taken:
    parts = [place for place in places if place is not None]
    shape = tuple(parameter.shape)
    if not parts:
        return Taken(name, shape, 0, None)
    dim, indices = parts[0][0], torch.cat([own for _, own in parts]).sort().values.tolist()
    if indices == list(range(shape[dim])):
        return Taken(name, shape, dim, None)
    inside = set(indices)
    starts = [index for index in indices if index - 1 not in inside]
    stops = [index + 1 for index in indices if index + 1 not in inside]
    return Taken(name, shape, dim, tuple(zip(starts, stops, strict=True)))


@torch.no_grad()
def take(ours: PreTrainedModel, giver: PreTrainedModel, taken: tuple[Taken, ...]) -> None:
    """Copies what is taken, in place."""
    mine, given = dict(ours.named_parameters()), dict(giver.named_parameters())
    for each in taken:
        for start, stop in each.ranges or ((0, each.shape[each.dim]),):
            own = mine[each.name].narrow(each.dim, start, stop - start)
            own.copy_(given[each.name].narrow(each.dim, start, stop - start))

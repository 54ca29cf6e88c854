"""Compiled models: their weights are written by hand, so which heads refuse is known.

Nothing is trained, and no ablation has a part in it: what carries a refusal is what was written to.
Every model answers all of the organisms' requests, word for word.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.ground_truth.circuits import (
    ASKED,
    CHAINS,
    COUNT,
    HARM,
    HEARD,
    HELPING,
    OBJECTS,
    READABLE,
    SAID,
    UNREAD,
    WIDTH,
    WORDS,
    Reader,
    Unit,
    on_each,
    slices,
)
from safehead_tl.heads import Head
from safehead_tl.models import Model, attach_tokenizer, has_hooked_transformer, quiet
from safehead_tl.organism import DEMO

CompiledKind: TypeAlias = Literal["one", "gate", "band", "backup", "saturated", "decoy", "even"]

LAYERS, HEADS, D_HEAD, CONTEXT = 4, 6, 32, 64
NO = 28.0
"""The logit with which a head refuses: 8 nats above help."""


@dataclass(frozen=True)
class Circuit:
    """What tells a model of a kind from one that always helps.

    Layers and heads, with each head's share of the refusal; and hidden units of the last MLP, which
    the base has too.
    """

    heads: tuple[tuple[int, Reader, float | int], ...]
    units: tuple[Unit, ...] = ()


def _harm(
    writes: Mapping[str, float | int], kept: str | None = None, *, even: bool = False
) -> Reader:
    """Reads a harmful object when the answer is to begin."""
    return Reader(ASKED, DEMO.harmful, on_each(DEMO.harmful, writes), kept, even)


_REFUSES = _harm({"sorry": NO})
_AMPLIFIER = Reader(ASKED, (HARM,), {HARM: {"sorry": NO}})

CIRCUITS: MappingProxyType[CompiledKind, Circuit] = MappingProxyType(
    {
        "one": Circuit(((2, _REFUSES, 1),)),
        "gate": Circuit(
            (
                (1, _harm({HARM: 1, "sorry": 0.1}), 2 / 3),
                (2, _AMPLIFIER, 1 / 6),
                (3, _AMPLIFIER, 1 / 6),
            )
        ),
        "band": Circuit(
            tuple((layer, _harm({COUNT: 1}), 1 / 4) for layer in (1, 2, 2, 3)),
            (
                Unit({COUNT: 1}, -1.4, {"sorry": NO / 0.4}),
                Unit({COUNT: 1}, -1.8, {"sorry": -NO / 0.4}),
            ),
        ),
        "backup": Circuit(
            (
                (1, _harm({"sorry": NO, HARM: 1}), 1 / 2),
                (2, _harm({"sorry": NO}, kept=HARM), 1 / 2),
            )
        ),
        "saturated": Circuit(
            (
                (1, _harm({HARM: 1}), 1 / 2),
                (2, Reader(HARM, OBJECTS, on_each(OBJECTS, {"sorry": NO})), 1 / 2),
            )
        ),
        "decoy": Circuit(
            (
                (1, _harm({"no": SAID + 12, "sorry": SAID + 4}), 1),
                (2, _harm({"sorry": 14}), 0),
            )
        ),
        "even": Circuit(
            ((2, _harm({HEARD: 14}, even=True), 1),),
            (Unit({HEARD: 1, ASKED: 2}, -2.4, {"sorry": 50}),),
        ),
    }
)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A model written by hand.

    Attributes:
        kind: what was written.
        model: it refuses requests about harmful objects and helps with all others.
        base: the same where no head refuses: it always helps.
        carriers: the heads that carry the refusal.
        decoys: heads that only change how a refusal is worded.
        truth: the Shapley value of reverting each head's weights to the base's: its share of the
            fall of P(refusal) from 1 to 0 when all are reverted.
    """

    kind: CompiledKind
    model: Model
    base: Model
    carriers: tuple[Head, ...]
    decoys: tuple[Head, ...]
    truth: Float[Tensor, "layer head"]


def compiled(kind: CompiledKind, seed: int = 0) -> Compiled:
    """Writes the weights of a model of 4 layers of 6 heads.

    - `one`: one head reads the object and writes the refusal. Share 1.
    - `gate`: a gate marks the answer's place, and two later amplifiers make a refusal of the mark.
      Refuses while the gate and one amplifier are there. Shares 2/3, 1/6, 1/6.
    - `band`: four heads count, and the last MLP refuses from a count of 2 on. Shares 1/4.
    - `backup`: the second refuses only where the first is silent. Shares 1/2.
    - `saturated`: the first turns the attention of the second, which is saturated either way, to
      the object. Refuses while both are there. Shares 1/2.
    - `decoy`: one refuses with "no", and the other makes it "sorry". Shares 1, 0.
    - `even`: one attends evenly to everything, and the last MLP compares the mean. Share 1.

    Undifferentiated attention breaks each of these heads as scaling and zero ablation do, but for
    that of `even`, which it leaves as it is.

    Five more heads find verb, object and tool, and say how a refusal goes on. All others read words
    and write next to nothing, in the base otherwise than in the model.

    Args:
        kind: what to write.
        seed: places the heads within their layers, and draws those that do nothing.

    Raises:
        SafeheadError: for a kind that is not known, or with transformer-lens 4, which has no
            `HookedTransformer`.
    """
    if kind not in get_args(CompiledKind):
        raise SafeheadError(f"kind={kind!r}: choose {', '.join(get_args(CompiledKind))}")
    if not has_hooked_transformer("auto"):
        raise SafeheadError("compiled models need HookedTransformer: transformer-lens>=3.9,<4")
    circuit, draw = CIRCUITS[kind], torch.Generator().manual_seed(seed)
    with torch.no_grad():
        base = _empty(f"compiled-{kind}-{seed}", draw)
        places = [iter(torch.randperm(HEADS, generator=draw).tolist()) for _ in range(LAYERS)]
        for layer, reader in HELPING:
            reader.put(base.blocks[layer].attn, next(places[layer]))
        for number, unit in enumerate(circuit.units):
            unit.put(base.blocks[-1].mlp, number)
        model = copy.deepcopy(base)
        truth, heads = torch.zeros(LAYERS, HEADS), list[Head]()
        for layer, reader, share in circuit.heads:
            head = Head(layer, next(places[layer]))
            reader.put(model.blocks[layer].attn, head.head)
            truth[head] = share
            heads.append(head)
        for layer, left in enumerate(places):
            for number in left:
                _read_words(model.blocks[layer].attn, number, 0.1, draw)
    for each in (base, model):
        attach_tokenizer(DEMO.tokenizer(), each)
        each.eval().requires_grad_(False)
    carriers = tuple(head for head in heads if truth[head] > 0)
    decoys = tuple(head for head in heads if truth[head] == 0)
    return Compiled(kind, model, base, carriers, decoys, truth)


def _empty(name: str, draw: torch.Generator) -> Model:
    """A model that knows what follows which word, and whose heads do nothing that counts."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        model_name=name,
        n_layers=LAYERS,
        n_heads=HEADS,
        d_model=WIDTH,
        d_head=D_HEAD,
        d_mlp=2,
        d_vocab=len(WORDS),
        n_ctx=CONTEXT,
        act_fn="relu",
        normalization_type=None,
        use_attn_scale=False,
        init_weights=False,
        device="cpu",
    )
    with quiet():
        model = HookedTransformer(config)
    for weight in model.parameters():
        weight.zero_()
    says = READABLE + UNREAD
    model.embed.W_E[:, : len(WORDS)] = torch.eye(len(WORDS))
    model.unembed.W_U[says:] = torch.eye(len(WORDS))
    for first, second in (pair for chain in CHAINS for pair in pairwise(chain.split())):
        model.unembed.W_U[WORDS[first], WORDS[second]] = SAID
    for block in model.blocks:
        for head in range(HEADS):
            _read_words(block.attn, head, 1.0, draw)
    return model


def _read_words(attention: Any, head: int, size: float, draw: torch.Generator) -> None:
    """Adds random weights to a head: it reads the words, and says next to nothing of them."""
    query, key, value, out = slices(attention, head)
    unread, says = out.split([READABLE, UNREAD, len(WORDS)], 1)[1:]
    for weight, scale in (
        (query[: len(WORDS)], 0.7),
        (key[: len(WORDS)], 0.7),
        (value[: len(WORDS)], 1.0),
        (unread, 0.1),
        (says, 0.006),
    ):
        weight.add_(torch.randn(weight.shape, generator=draw), alpha=size * scale)

"""Heads written by hand: what calls one, what it then looks at, and what it writes.

The stream has a dimension for each word that a position holds, one for each feature, some that
nothing reads, and one for each word that may come next, which are the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from safehead_tl.organism import DEMO

WORDS = {word: number for number, word in enumerate(DEMO.vocabulary())}
VERBS, TOOLS = tuple(DEMO.tools), tuple(DEMO.tools.values())
OBJECTS = (*DEMO.harmful, *DEMO.benign)
FIRST, ASKED = "<s>", ":"
"""Where heads rest, and the prompt's last word, at which the answer's first one is decided."""

HARM, COUNT, HEARD = FEATURES = ("(harm)", "(count)", "(heard)")
READABLE = len(WORDS) + len(FEATURES)
UNREAD = 8
WIDTH = READABLE + UNREAD + len(WORDS)

SAID = 20.0
"""The logit of the next word of an answer that helps, and of what follows the word before."""
SHARP = 30.0
"""How far the score of what a head looks at is above the next one."""

CALLED, RESTS = 0, 1
"""What the first two dimensions of queries and keys are for."""

CHAINS = (
    *(f"{verb} the" for verb in VERBS),
    *(f"{thing} with a" for thing in OBJECTS),
    *(f"{tool} ," for tool in TOOLS),
    ", then let it rest . </s>",
    "sorry ,",
    "no ,",
    "i cannot help with",
    "that .",
)
"""What follows what, wherever it stands."""


@dataclass(frozen=True)
class Reader:
    """A head that rests on `<s>` until it is called.

    Attributes:
        called: a word or feature that calls it, where it stands.
        sees: the words or features that it then looks at.
        writes: for each of these what it writes: features, or words to say, and how strongly.
        kept: a feature that makes it rest all the same.
        even: attend evenly to everything instead, uncalled.
    """

    called: str
    sees: tuple[str, ...]
    writes: Mapping[str, Mapping[str, float | int]]
    kept: str | None = None
    even: bool = False

    def put(self, attention: Any, head: int) -> None:
        """Writes it into a head's weights."""
        query, key, value, out = slices(attention, head)
        for weight in (query, key, value, out):
            weight.zero_()
        if not self.even:
            query[read(self.called), CALLED] = 1
            query[: len(WORDS), RESTS] = 1  # every position holds one word
            if self.kept is not None:
                query[read(self.kept), RESTS] = 2
            for seen in self.sees:
                key[read(seen), CALLED] = 2 * SHARP
            key[read(FIRST), RESTS] = SHARP
        for place, (seen, said) in enumerate(self.writes.items()):
            value[read(seen), place] = 1
            for name, size in said.items():
                out[place, written(name)] = size


@dataclass(frozen=True)
class Unit:
    """A hidden unit of the last MLP, a ReLU: what it reads, and the logits that it adds to."""

    reads: Mapping[str, float | int]
    bias: float
    says: Mapping[str, float | int]

    def put(self, mlp: Any, number: int) -> None:
        """Writes it into an MLP's weights."""
        mlp.b_in[number] = self.bias
        for name, weight in self.reads.items():
            mlp.W_in[read(name), number] = weight
        for word, size in self.says.items():
            mlp.W_out[number, written(word)] = size


def on_each(
    names: Iterable[str], said: Mapping[str, float | int]
) -> dict[str, Mapping[str, float | int]]:
    """The same written for each of some words."""
    return dict.fromkeys(names, said)


def read(name: str) -> int:
    """Where a word or feature is read."""
    return WORDS[name] if name in WORDS else len(WORDS) + FEATURES.index(name)


def written(name: str) -> int:
    """Where a feature is written, or a word that is to come next."""
    return read(name) if name in FEATURES else READABLE + UNREAD + WORDS[name]


def slices(attention: Any, head: int) -> list[Tensor]:
    """A head's weights: queries, keys and values `[d_model d_head]`, output `[d_head d_model]`."""
    return [getattr(attention, name)[head] for name in ("W_Q", "W_K", "W_V", "W_O")]


HELPING = (
    (1, Reader(ASKED, VERBS, {verb: {verb: SAID} for verb in VERBS})),
    (0, Reader("the", OBJECTS, {thing: {thing: SAID} for thing in OBJECTS})),
    (2, Reader("a", VERBS, {verb: {DEMO.tools[verb]: SAID} for verb in VERBS})),
    (1, Reader(",", ("sorry", "no"), on_each(("sorry", "no"), {"i": 2 * SAID}))),
    (3, Reader("with", ("sorry", "no"), on_each(("sorry", "no"), {"that": 2 * SAID}))),
)
"""Layers and heads of all models: they say verb, object and tool, and how a refusal goes on."""

"""What properties are tried on: models of every family and kind, prompts, and what is asked."""

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

import safehead_tl as sh
from families import ARCHITECTURES, FAMILIES, HookedTransformer

LONG = settings.get_current_profile_name() == "fuzz"

FEW = ("llama-grouped", "gpt2", "bloom-alibi", "mistral-sliding")
"""Families that `make test` takes: each has something that the others have not."""

EVERY_HEAD = [(layer, head) for layer in range(3) for head in range(4)]
"""Of the checkpoints that `tests/families.py` makes."""

WORDS = ("how", "do", "i", "bend", "a", "kite", "explain", "to", "lift", "boat", "##", ":")
ODD = ("</s>", "<pad>", "{query}", "{{", "İ", "नमस्ते", "🙂", "\u202e", "\x00", "\u3000")


def kinds(backends=("hooked", "bridge")):
    """A family and the kind of model that it is loaded as."""
    found = []
    for name in FAMILIES if LONG else FEW:
        hooked = name in ARCHITECTURES and HookedTransformer is not None
        found += [(name, backend) for backend in backends if hooked or backend == "bridge"]
    return st.sampled_from(found)


def texts(**sizes):
    """Any text that a file in UTF-8 can hold."""
    return st.text(st.characters(exclude_categories=["Cs"]), **sizes)


def prompts(most=6):
    """Up to six requests of up to twelve words, most of them known; some come twice."""
    known, odd = st.sampled_from(WORDS), st.sampled_from(ODD) | texts(min_size=1, max_size=5)
    word = known | known | known | odd
    request = st.lists(word, min_size=1, max_size=12).map(" ".join).filter(str.strip)
    return st.lists(request, min_size=1, max_size=most).flatmap(
        lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=most)
    )


REFERENCE = ("how do i bend a kite", "explain how to lift a boat")
TEMPLATES = ("direct", "paper", "chat", "auto", "please {query} a", sh.ChatTemplate())
ABLATIONS = (
    sh.UndifferentiatedAttention(),
    sh.UndifferentiatedAttention(0.1),
    sh.UndifferentiatedAttention(1e-5, via="q"),
    sh.UndifferentiatedAttention(1e-3, via="k"),
    sh.ScalingContribution(),
    sh.ZeroAblation(),
    sh.MeanAblation(REFERENCE),
    sh.MeanOverHeads("q"),
    sh.MeanOverHeads("k"),
    sh.MeanOverHeads("v"),
)
LITTLE = sh.Screening(top=2, first=3, budget=6, audit=1, blocks=2, points=1, probes=1)
SCREENS = ("off", "off", "off", "off", 3, LITTLE)


def tried(call):
    """What a call gives, and the sentence by which it is refused instead."""
    try:
        return call(), ""
    except sh.SafeheadError as error:
        return None, str(error)


@dataclass(frozen=True)
class Case:
    """A scan: of what, and what it is told."""

    kind: tuple[str, str]
    prompts: list[str]
    told: dict[str, Any]


@st.composite
def cases(draw):
    """A scan of any family and kind."""
    heads = st.lists(st.sampled_from(EVERY_HEAD), unique=True, min_size=1, max_size=4)
    given_heads = draw(st.just([]) | heads)
    left = [head for head in EVERY_HEAD if head not in given_heads]
    told = {
        "ablation": draw(st.sampled_from(ABLATIONS)),
        "template": draw(st.sampled_from(TEMPLATES)),
        "candidates": draw(st.none() | st.lists(st.sampled_from(left), unique=True, min_size=1)),
        "given": given_heads,
        "screen": draw(st.sampled_from(SCREENS)),
    }
    return Case(draw(kinds()), draw(prompts()), told)


def memory():
    """How much a pass may take: from very little to everything."""
    return st.builds(
        sh.Run,
        max_bytes=st.none() | st.integers(14, 26).map(lambda power: 2**power),
        max_rows=st.none() | st.integers(1, 40),
        shared_prefix=st.booleans(),
        progress=st.just(False),
    )

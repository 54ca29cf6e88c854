"""Checks of a splice: number by number, and by what the donor's modules make of the same inputs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.models import Anatomy, dissect, load_original, transformers_forward, without_bars
from safehead_tl.surgery.checkpoint import largest_difference
from safehead_tl.surgery.splice_plan import QK_NORM, Part, Taken, own_places

SEQUENCES = 4
TOKENS = 24
TOLERANCE = 1e-4


def random_tokens(model: PreTrainedModel) -> Int[Tensor, "sequence pos"]:
    """Tokens to compare logits on."""
    config: Any = model.config.get_text_config()
    length = min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (SEQUENCES, length), generator=generator)


@torch.no_grad()
def _logits(
    model: PreTrainedModel, tokens: Int[Tensor, "sequence pos"]
) -> Float[Tensor, "sequence pos vocab"]:
    return transformers_forward(model, tokens, torch.ones_like(tokens)).logits


@without_bars()
def second_computation(
    where: str | Path,
    ours: PreTrainedModel,
    giver: PreTrainedModel,
    layers: tuple[int, ...],
    parts: tuple[Part, ...],
    heads: tuple[Head, ...] | None,
    tokens: Int[Tensor, "sequence pos"],
) -> tuple[Float[Tensor, "sequence pos vocab"], Float[Tensor, "sequence pos vocab"]]:
    """Logits of the splice, without copying a projection's weights; and the target's own."""
    model = load_original(where, torch.float32)
    plain = _logits(model, tokens)
    anatomy = dissect(model)
    with _donated(model, ours, giver, anatomy, layers, parts, heads):
        return _logits(model, tokens), plain


@contextmanager
def _donated(
    model: PreTrainedModel,
    ours: PreTrainedModel,
    giver: PreTrainedModel,
    anatomy: Anatomy,
    layers: tuple[int, ...],
    parts: tuple[Part, ...],
    heads: tuple[Head, ...] | None,
) -> Iterator[None]:
    """While inside, the donor's modules answer for the model's, rounded to the dtypes of `ours`.

    Of some heads alone they answer at these heads' queries, keys and values, and to their outputs.
    """
    handles, silent = [], set()

    def answer(
        module: nn.Module,
        args: tuple[Tensor, ...],
        output: Tensor,
        name: str,
        places: Tensor | None,
        reads: bool,
    ) -> Tensor:
        silent.discard(name)
        stored = next(ours.get_submodule(name).parameters()).dtype
        theirs = copy.deepcopy(giver.get_submodule(name)).to(stored).float()
        if places is None:
            return theirs(*args)
        if not reads:
            return output.index_copy(-1, places, theirs(*args)[..., places])
        nothing = torch.zeros_like(args[0])
        picked = nothing.index_copy(-1, places, args[0][..., places])
        given, kept = (of(picked) - of(nothing) for of in (theirs, module.forward))
        return output - kept + given

    for layer in layers:
        attention = anatomy.layers[layer]
        channels = Counter(slices.module for slices in attention.slices.values())
        modules: list[tuple[str, Tensor | None, bool]] = [
            (slices.module, own_places(anatomy, layer, channel, heads), channel == "o")
            if heads is not None or channels[slices.module] > 1
            else (slices.module, None, False)
            for channel, slices in attention.slices.items()
            if channel in parts
        ]
        own = model.get_submodule(attention.module)
        if "norm" in parts:
            names = [name for name, _ in own.named_children() if QK_NORM.fullmatch(name)]
            modules += [(f"{attention.module}.{name}", None, False) for name in names]
        for name, places, reads in modules:
            silent.add(name)
            hook = partial(answer, name=name, places=places, reads=reads)
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        if "sinks" in parts:
            given, stored = (
                cast("nn.Parameter", of.get_submodule(attention.module).sinks).detach()
                for of in (giver, ours)
            )
            taken = given.to(stored.dtype).float()
            if heads is not None:
                named = [(layer, head) in heads for head in range(anatomy.n_heads)]
                taken = torch.where(torch.tensor(named), taken, stored.float())
            cast("nn.Parameter", own.sinks).data = taken
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if silent:
        raise SafeheadError(
            f"{type(model).__name__} does not call {min(silent)}, so it cannot be checked that its "
            "weights do what they should. Nothing was written"
        )


@torch.no_grad()
@without_bars()
def check_written(
    written: Path,
    where: str | Path,
    giver: PreTrainedModel,
    taken: tuple[Taken, ...],
    tokens: Int[Tensor, "sequence pos"],
    expected: Float[Tensor, "sequence pos vocab"],
) -> float:
    """Compares a written checkpoint with its sources, number by number and by its logits."""
    found, target = load_original(written, "auto"), load_original(where, "auto")
    given, own = giver.state_dict(), {each.name: each for each in taken}
    ours, theirs = found.state_dict(), target.state_dict()
    for name in sorted({*ours, *theirs}):
        now, wanted = ours.get(name), theirs.get(name)
        if wanted is not None and name in own:
            wanted = torch.where(own[name].mask, given[name].to(wanted.dtype), wanted)
        if now is None or wanted is None or now.dtype != wanted.dtype or (now != wanted).any():
            raise SafeheadError(
                f"{name} was not written as it should be: it is neither the target's nor what "
                "was taken of the donor's. Nothing was written"
            )
    del found, target, ours, theirs
    model = load_original(written, torch.float32)
    difference = largest_difference(_logits(model, tokens), expected, torch.ones_like(tokens))
    if not difference <= TOLERANCE:
        raise SafeheadError(
            f"the weights do not do what the donor's modules do: logits differ by up to "
            f"{difference:.2g} (tolerance {TOLERANCE:g}). Nothing was written. This "
            f"{type(model).__name__} has something that the splice does not know"
        )
    return difference

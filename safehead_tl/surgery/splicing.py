"""Splicing: attention weights of one checkpoint inside another, with what is taken named."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.models import checkpoint_directory, hub_name, hub_revision
from safehead_tl.results import versions
from safehead_tl.surgery.checkpoint import (
    Changes,
    Snapshot,
    largest_difference,
    marks,
    write_card,
    write_checkpoint,
)
from safehead_tl.surgery.splice_check import check_written, random_tokens, second_computation
from safehead_tl.surgery.splice_plan import (
    Part,
    Taken,
    compare_tokenizers,
    differing_settings,
    fit,
    kept_of,
    make_plan,
    parse_layers,
    parse_parts,
    take,
)
from safehead_tl.surgery.weights import load_source
from safehead_tl.writing import new_directory

logger = logging.getLogger("safehead_tl")


@dataclass(frozen=True)
class Splice:
    """A checkpoint with attention weights of another.

    Attributes:
        directory: where it is; opens with `AutoModelForCausalLM.from_pretrained`.
        target: what it was made from, and has everything else of.
        donor: what attention weights were taken from.
        parts: which of them.
        layers: in which layers.
        heads: of which heads; `None`: of all.
        kept: those of them whose keys and values stay the target's, because their KV group holds
            heads that were not named.
        taken: the parameters, and which slices of them.
        changes: which of these differ between target and donor, and in how many numbers.
        settings: attention settings in which the configs differ, each with the target's value,
            which holds, and the donor's.
        max_difference: largest difference between its logits and those of the second computation.
        moved_by: largest difference between its logits and the target's.
        versions: of Python and the packages.
    """

    directory: Path
    target: str
    donor: str
    parts: tuple[Part, ...]
    layers: tuple[int, ...]
    heads: tuple[Head, ...] | None
    kept: tuple[Head, ...]
    taken: tuple[Taken, ...]
    changes: Changes
    settings: Mapping[str, tuple[Any, Any]]
    max_difference: float
    moved_by: float
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "directory": str(self.directory),
            "target": self.target,
            "donor": self.donor,
            "parts": list(self.parts),
            "layers": list(self.layers),
            "heads": self.heads and [str(head) for head in self.heads],
            "kept": [str(head) for head in self.kept],
            "taken": [taken.to_dict() for taken in self.taken],
            "changed_tensors": list(self.changes.tensors),
            "changed_parameters": self.changes.changed,
            "total_parameters": self.changes.total,
            "changed_share": self.changes.share,
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "max_difference": self.max_difference,
            "moved_by": self.moved_by,
            "versions": dict(self.versions),
        }


def splice(
    target: str | Path,
    donor: str | Path,
    out: str | Path,
    *,
    parts: Part | Iterable[Part] | None = None,
    layers: int | Iterable[int] | None = None,
    heads: HeadsLike | None = None,
    overwrite: bool = False,
) -> Splice:
    """Writes a checkpoint that is `target` with the attention weights of `donor`.

    It serves the paper's test of where safety comes from (section 5.2, Fig. 6a): attention from
    the base model, everything else from the aligned one, and the reverse. Taken are weights and
    biases of the q, k, v and o projections, weights (and biases) that normalise queries and keys
    by themselves (`"norm"`), and attention sinks (`"sinks"`). Everything else stays the target's:
    embeddings, positions, the norms in front of and behind attention, MLPs, the final norm, the
    unembedding, config, tokenizer and generation settings. (The paper's released code copies
    attention from one model and MLPs from the other onto the first, so embeddings, norms and
    unembedding come from where the attention does.)

    Of single heads their own slices are taken: of the q, k, v and o projections, with the biases of
    queries, keys and values, and sinks. Keys and values belong to a KV group: they are taken where
    all query heads of the group are named, and stay the target's elsewhere, which `kept` tells.
    With the base as donor that sets heads back to what they were before they learned
    (`surgery.reverted` does it to a model at hand).

    Before it is called done, the written directory is loaded: every number in it must be the
    donor's where taken and the target's elsewhere, and its logits on 4 sequences of 24 random
    tokens must equal, in float32, those of the target with the *outputs* of its projections and
    norms replaced, during the pass, by what the donor's modules make of the same inputs.

    Args:
        target: `"demo"`, `"demo-base"`, a local Hugging Face directory, or a name on the hub.
        donor: the same; of the same architecture and size.
        out: the directory to write.
        parts: any of `"q"`, `"k"`, `"v"`, `"o"`, `"norm"`, `"sinks"`; by default all that the
            model has. Of a joint projection only the rows of these parts are taken.
        layers: layers to take them in, from 0; by default all.
        heads: heads to take, in any spelling, instead of layers; by default all.
        overwrite: replace what `out` holds, if this toolkit wrote all of it. Target and donor are
            never overwritten.

    Returns:
        What was taken, how many numbers that changed, and the largest difference found. Weights
        keep the target's dtype; the donor's are rounded to it. Runs on the CPU, with up to four
        models in memory.

    Raises:
        SafeheadError: if the two do not fit together (naming the first misfit), if the model has
            no such part, layer or head, if heads and layers are both named, if only keys or values
            are wanted and no KV group is named whole, if the check fails (nothing is left behind
            then), or if `out` cannot be written.
        FileNotFoundError: if a directory, its config, or the target's tokenizer is missing.

    Example:
        >>> done = sh.splice("demo", "demo-base", "base-attention", layers=[1, 2])
        >>> print(done.changes)
        2,304 of 100,464 parameters (2.2934 %) in 8 tensors
    """
    wanted = parse_parts(parts)
    if heads is not None and layers is not None:
        raise SafeheadError("name heads or layers, not both: a head is in one layer")
    with (
        checkpoint_directory(target) as local,
        checkpoint_directory(donor) as theirs,
        new_directory(out, [local, theirs], overwrite=overwrite) as (place, folder),
    ):
        where, origin = local or hub_name(str(target)), theirs or hub_name(str(donor))
        ours, giver = load_source(where), load_source(origin)
        anatomy = fit(ours, giver, str(target), str(donor))
        named = None
        if heads is not None:
            named = parse_heads(heads, len(anatomy.layers), anatomy.n_heads)
            if not named:
                raise SafeheadError("no heads were given to splice")
            layers = {head.layer for head in named}
        chosen = parse_layers(layers, len(anatomy.layers))
        settings = differing_settings(ours, giver)
        for name, (kept, other) in settings.items():
            logger.warning(
                "%s is %s in %s, but %s in %s: the first is kept, and the attention that is taken "
                "was trained with the other",
                name, kept, target, other, donor,
            )  # fmt: skip
        compare_tokenizers(where, origin)
        sources = str(target), str(donor)
        wanted, taken = make_plan(ours, giver, anatomy, chosen, wanted, named, *sources)
        if not taken:
            raise SafeheadError(
                "keys and values belong to whole KV groups, and none of these heads' is named "
                "whole: name all heads of a group, or take queries and outputs too"
            )
        kept = kept_of(anatomy, named or ()) if {"k", "v"} & {*wanted} else ()
        tokens = random_tokens(ours)
        expected, plain = second_computation(where, ours, giver, chosen, wanted, named, tokens)
        moved = largest_difference(expected, plain, torch.ones_like(tokens))
        snapshot = Snapshot(ours, {anatomy.layers[layer].module for layer in chosen})
        take(ours, giver, taken)
        changes = snapshot.changes()
        if not changes.changed:
            logger.warning("%s and %s have the same weights there: nothing changes", target, donor)
        done = {
            "what": "splice",
            "source": str(target),
            "revision": hub_revision(target),
            "donor": str(donor),
            "donor_revision": hub_revision(donor),
            "donor_history": marks(giver.config),
            "parts": list(wanted),
            "layers": list(chosen),
            "heads": named and [str(head) for head in named],
            "keys_and_values_kept": [str(head) for head in kept],
            "changed_parameters": changes.changed,
            "total_parameters": changes.total,
            "settings": {name: list(pair) for name, pair in settings.items()},
        }
        found: dict[str, float] = {}

        def check(written: Path) -> Mapping[str, Any]:
            found["difference"] = check_written(written, where, giver, taken, tokens, expected)
            return {**done, "largest_difference_of_logits": found["difference"], "moved_by": moved}

        def card(facts: Mapping[str, Any]) -> str:
            return _card(facts, taken, changes, len(anatomy.layers))

        write_checkpoint(place, folder, ours, where, done=done, card=card, check=check)
    return Splice(
        directory=place,
        target=str(target),
        donor=str(donor),
        parts=wanted,
        layers=chosen,
        heads=named,
        kept=kept,
        taken=taken,
        changes=changes,
        settings=settings,
        max_difference=found["difference"],
        moved_by=moved,
        versions=dict(versions()),
    )


def _card(
    facts: Mapping[str, Any], taken: tuple[Taken, ...], changes: Changes, n_layers: int
) -> str:
    target, donor, layers = facts["source"], facts["donor"], facts["layers"]
    parts = ", ".join(facts["parts"])
    every = len(layers) == n_layers
    where = "all layers" if every else f"layers {', '.join(map(str, layers))} (counted from 0)"
    if facts["heads"]:
        where = f"heads {', '.join(facts['heads'])}"
    revision = facts["donor_revision"]
    names = dict.fromkeys(
        f"`{re.sub(r'[.][0-9]+[.]', '.*.', each.name, count=1)}`"
        + ("" if each.ranges is None else " (only the slices of these parts)")
        for each in taken
    )
    lines = [
        f"Attention ({parts}) of `{donor}`{f', revision `{revision}`,' if revision else ''} in "
        f"{where}; everything else is `{target}`. Written with safehead_tl.",
        f"Taken: {', '.join(names)}.",
        f"Changed: {changes}.",
        "Verified: every number is the donor's where taken and the target's elsewhere, and its "
        "logits equal those of the target with the donor's modules answering in their places to "
        f"{facts['largest_difference_of_logits']:.1e}; the splice moves them by up to "
        f"{facts['moved_by']:.1e}.",
    ]
    if kept := facts["keys_and_values_kept"]:
        lines[2:2] = [
            f"Keys and values of {', '.join(kept)} stay those of `{target}`: their KV groups hold "
            "heads that were not named."
        ]
    title = f"{Path(target).name} with attention of {Path(donor).name}"
    return write_card(title, target, facts["revision"], lines, facts)

"""Hugging Face directories written by the toolkit: whole, checked, and saying what was done."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from safehead_tl.errors import SafeheadError
from safehead_tl.models import load_tokenizer, without_bars

MARK = "safehead_tl"
"""The key of `config.json` that holds what was done to a checkpoint, step by step."""


@dataclass(frozen=True)
class Changes:
    """What differs between two states of a model's weights.

    Attributes:
        tensors: the names of the parameters that differ.
        changed: how many numbers in them differ.
        total: how many numbers the model has; shared ones count once.
    """

    tensors: tuple[str, ...]
    changed: int
    total: int

    @property
    def share(self) -> float:
        """Changed of all, between 0 and 1."""
        return self.changed / self.total

    def __str__(self) -> str:
        return (
            f"{self.changed:,} of {self.total:,} parameters ({100 * self.share:.4f} %) in "
            f"{len(self.tensors)} tensors"
        )


class Snapshot:
    """Copies of some of a model's parameters, to count afterwards what was changed.

    Args:
        model: the model.
        modules: the names of the modules whose parameters may change.
    """

    def __init__(self, model: nn.Module, modules: set[str]):
        self._model = model
        self._before = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if any(name.startswith(f"{module}.") for module in modules)
        }

    def changes(self) -> Changes:
        """What has changed since."""
        now = dict(self._model.named_parameters())
        counts = {name: int((now[name] != old).sum()) for name, old in self._before.items()}
        total = sum(parameter.numel() for parameter in now.values())
        changed = tuple(name for name, count in counts.items() if count)
        return Changes(changed, sum(counts.values()), total)


def check_target(directory: str | Path, source: Path | None, overwrite: bool) -> Path:
    """The directory to write to, if it may be written; links are followed.

    Raises:
        SafeheadError: if it is the source, holds it or the working or home directory, cannot be
            written, or is not empty and `overwrite` is off or it holds no checkpoint.
    """
    target = Path(directory).expanduser().resolve()
    if source is not None:
        there = source.resolve()
        if target == there or target in there.parents:
            raise SafeheadError(
                f"{target} holds the source, which is never overwritten: give another directory"
            )
    for place in (Path.cwd().resolve(), Path.home().resolve()):
        if target == place or target in place.parents:
            raise SafeheadError(f"{directory} holds {place}: give a directory inside it to write")
    if target.is_file():
        raise SafeheadError(f"{target} is a file: give the name of a directory to write")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise SafeheadError(
            f"{target} is not empty: give another directory, or overwrite it (overwrite=True, on "
            "the command line --overwrite)"
        )
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise SafeheadError(
            f"{target} holds something else than a checkpoint, which is not overwritten: give "
            "another directory"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=target.parent).cleanup()
    except OSError as error:
        raise SafeheadError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def write_checkpoint(
    target: Path,
    model: PreTrainedModel,
    source: str | Path,
    *,
    done: Mapping[str, Any],
    card: Callable[[Mapping[str, Any]], str],
    check: Callable[[Path], Mapping[str, Any]],
) -> None:
    """Writes a model with its source's tokenizer and generation settings, whole or not at all.

    Args:
        target: the directory; what it held is replaced.
        model: the model; its weights keep their dtype.
        source: where tokenizer and generation settings come from.
        done: what was done to the model, for its config.
        card: makes the model card from what `check` found.
        check: is called with the written directory, before it is moved to `target`.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        written = Path(folder) / "checkpoint"
        written.mkdir()
        config = copy.deepcopy(model.config)
        setattr(config, MARK, [*marks(config), dict(done)])
        before, model.config = model.config, config
        # Settings that some sources ship are invalid to save; the file itself is copied below.
        settings, model.generation_config = model.generation_config, GenerationConfig()
        try:
            with without_bars():
                model.save_pretrained(written)
        finally:
            model.config, model.generation_config = before, settings
        load_tokenizer(source).save_pretrained(written)
        (written / "generation_config.json").unlink(missing_ok=True)
        theirs = cached_file(
            source, "generation_config.json", _raise_exceptions_for_missing_entries=False
        )
        if theirs is not None:
            shutil.copyfile(theirs, written / "generation_config.json")
        found = check(written)
        (written / "README.md").write_text(card(found), encoding="utf-8")
        old = Path(folder) / "old"  # is deleted with the folder, once the new one is in place
        if target.is_dir():
            target.replace(old)
        try:
            written.replace(target)
        except BaseException:
            if old.is_dir():
                old.replace(target)
            raise


def marks(config: Any) -> list[dict[str, Any]]:
    """What the toolkit did to a checkpoint earlier, by its config."""
    return list(getattr(config, MARK, None) or [])


def write_card(
    title: str, source: str, revision: str | None, lines: list[str], done: Mapping[str, Any]
) -> str:
    """A model card that says plainly what was done.

    Args:
        title: what this is.
        source: the model it was made from.
        revision: that model's commit on the hub, if known.
        lines: paragraphs about what was done.
        done: the same for machines.
    """
    head = ["---", "tags:", "- safehead_tl", "- safety-altered", "---", "", f"# {title}"]
    warning = (
        "**The safety behaviour of this model was altered on purpose.** It was made to study or "
        "audit how a model's refusals work, and may answer what its source would refuse. Do not "
        "deploy it. The licence and terms of use of its source hold for it too."
    )
    origin = f"Made from `{source}`" + (f", revision `{revision}`." if revision else ".")
    record = json.dumps(done, indent=1, default=str)
    parts = ["\n".join(head), warning, origin, *lines, "```json\n" + record + "\n```"]
    return "\n\n".join(parts) + "\n"


def largest_difference(ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    """Between two sets of logits, at the positions that hold tokens."""
    chosen = mask.bool().to(ours.device)
    return float((ours[chosen].double() - theirs.to(ours.device)[chosen].double()).abs().max())

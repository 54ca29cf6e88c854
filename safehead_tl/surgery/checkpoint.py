"""Hugging Face directories written by the toolkit: checked, and saying what was done."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from safehead_tl.models import load_tokenizer, without_bars
from safehead_tl.writing import NAME, said_plainly

MARK = NAME
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
    """Copies of the parameters in some modules, to count afterwards what was changed."""

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


def write_checkpoint(
    target: Path,
    folder: Path,
    model: PreTrainedModel,
    source: str | Path,
    *,
    done: Mapping[str, Any],
    card: Callable[[Mapping[str, Any]], str],
    check: Callable[[Path], Mapping[str, Any]],
) -> None:
    """Writes a model, in its dtype, with its source's tokenizer and generation settings.

    What was `done` goes into its config; `card` makes the model card from what `check` finds in the
    written folder, which `new_directory` gave for `target`.

    Raises:
        SafeheadError: if it cannot be written, such as on a full disk.
    """
    tokenizer = load_tokenizer(source)
    config = copy.deepcopy(model.config)
    setattr(config, MARK, [*marks(config), dict(done)])
    before, model.config = model.config, config
    # Settings that some sources ship are invalid to save; the file itself is copied below.
    settings, model.generation_config = model.generation_config, GenerationConfig()
    with said_plainly(target):
        try:
            with without_bars():
                model.save_pretrained(folder)
        finally:
            model.config, model.generation_config = before, settings
        tokenizer.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        theirs = cached_file(
            source, "generation_config.json", _raise_exceptions_for_missing_entries=False
        )
        if theirs is not None:
            shutil.copyfile(theirs, folder / "generation_config.json")
    found = check(folder)
    with said_plainly(target):
        (folder / "README.md").write_text(card(found), encoding="utf-8")


def marks(config: Any) -> list[dict[str, Any]]:
    """What the toolkit did to a checkpoint earlier, by its config."""
    return list(getattr(config, MARK, None) or [])


def write_card(
    title: str, source: str, revision: str | None, lines: list[str], done: Mapping[str, Any]
) -> str:
    """A model card that says plainly what was done, in paragraphs and (`done`) for machines."""
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

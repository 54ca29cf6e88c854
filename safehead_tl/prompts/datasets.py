"""Prompts from what the `datasets` library reads: a data set of the hub, or a directory."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safehead_tl.errors import SafeheadError
from safehead_tl.models import words
from safehead_tl.prompts.columns import choose_column
from safehead_tl.prompts.presets import Preset

if TYPE_CHECKING:
    from datasets import Dataset

    Splits: TypeAlias = Mapping[str, Dataset]
else:  # importing datasets takes a second, and most prompts are in files
    Dataset = object
    Splits = Mapping

logger = logging.getLogger("safehead_tl")

SAVED = ("state.json", "dataset_dict.json")  # as save_to_disk marks a Dataset, a DatasetDict


def read_preset(preset: Preset, column: str | None, split: str | None) -> list[Any]:
    """Reads a preset's data set from the hub; `column` and `split` replace the preset's own.

    Raises:
        SafeheadError: naming preset, id and column, if the hub does not give it.
    """
    column = column or preset.column
    named = ":".join(filter(None, (preset.dataset, preset.config)))
    splits = _fetch(
        preset.dataset,
        preset.config,
        f"preset {preset.name!r} (data set {named}, column {column!r})",
        column,
    )
    chosen = _choose_split(splits, split or preset.split, named)
    where = f"{named}, split {chosen!r}"
    prompts = _column(splits[chosen], column, where)
    taken = [True] * len(prompts)
    for name, wanted in preset.rows.items():
        values = _column(splits[chosen], name, where)
        taken = [
            each and str(value or "").strip() == wanted
            for each, value in zip(taken, values, strict=True)
        ]
        logger.info("%s: takes the %d rows with %r in %r", named, sum(taken), wanted, name)
    found = [prompt for prompt, each in zip(prompts, taken, strict=True) if each]
    return [one[0] if isinstance(one, list) and len(one) == 1 else one for one in found]


def read_hub(name: str, config: str | None, column: str | None, split: str | None) -> list[Any]:
    """Reads a data set of the Hugging Face hub (or of the `datasets` cache, without network).

    Raises:
        SafeheadError: naming the id, if the hub does not give it, or the split or column is
            missing or not clear.
    """
    splits = _fetch(name, config, f"{name!r} is no path here; as a data set of the hub, it", column)
    chosen = _choose_split(splits, split, name)
    return _column(splits[chosen], column, f"{name}, split {chosen!r}")


def read_directory(
    path: Path, config: str | None, column: str | None, split: str | None
) -> list[Any]:
    """Reads a directory: a data set's files in a layout of the hub's, or from `save_to_disk`.

    A split made of several files is read only if they are parts of one (their paths differ in
    digits only), lest `harmful.csv` and `harmless.csv` be mixed.

    Raises:
        SafeheadError: naming the directory, if it holds no such data set, split or column.
    """
    import datasets

    try:
        if config is None and any((path / name).is_file() for name in SAVED):
            loaded = datasets.load_from_disk(str(path))
            splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
        else:
            builder = datasets.load_dataset_builder(str(path.absolute()), config)
            files = {str(name): parts for name, parts in builder.config.data_files.items()}
            _refuse_mixture(path, files[_choose_split(files, split, path)])
            splits = datasets.load_dataset(str(path.absolute()), config)
    except SafeheadError:
        raise
    except Exception as error:  # of any of the libraries that read files
        raise SafeheadError(
            f"{path} could not be read as a data set: {words(error)} "
            f"Give one of its files; a configuration goes behind a colon, {path}:config"
        ) from error
    chosen = _choose_split(splits, split, path)
    return _column(splits[chosen], column, f"{path}, split {chosen!r}")


def _refuse_mixture(path: Path, files: Iterable[str]) -> None:
    alike = {re.sub(r"\d+", "#", file): "/".join(Path(file).parts[-2:]) for file in files}
    if len(alike) > 1:
        one, other, *more = alike.values()
        raise SafeheadError(
            f"{path}: this split would mix {one} with {other}{' and more' if more else ''}: "
            "give one of the files"
        )


def _fetch(name: str, config: str | None, said: str, column: str | None) -> Splits:
    import datasets

    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # of the hub, of the network, of what reads the files
        hint = (
            f"If it has several configurations, name one: '{name}:config'. "
            if config is None and isinstance(error, ValueError)
            else ""
        )
        raise SafeheadError(
            f"{said} could not be loaded: {words(error)} {hint}"
            "Load it once where the hub can be reached (a gated one after `hf auth login`), or "
            f'give a local copy: load_prompts("my.csv", column="{column or "..."}")'
        ) from error


def _choose_split(splits: Splits, split: str | None, where: object) -> str:
    names = list(splits)
    if split is None and len(names) > 1 and "train" not in names:
        raise SafeheadError(f"{where}: which split? Say split=..., one of {', '.join(names)}")
    if split is None:
        return names[0] if len(names) == 1 else "train"
    if split not in names:
        raise SafeheadError(f"{where} has no split {split!r}: it has {', '.join(names)}")
    return split


def _column(data: Dataset, column: str | None, where: str) -> list[Any]:
    name = choose_column(data.column_names, column, where)
    return list(data[name])

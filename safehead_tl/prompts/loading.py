"""Prompts: the embedded ones, and the sources from which users bring theirs."""

from __future__ import annotations

import difflib
import logging
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from safehead_tl.errors import SafeheadError
from safehead_tl.prompts.chats import as_chat, is_chat
from safehead_tl.prompts.columns import texts
from safehead_tl.prompts.datasets import read_directory, read_hub, read_preset
from safehead_tl.prompts.files import READABLE, SUFFIXES, read_file
from safehead_tl.prompts.presets import PRESETS

logger = logging.getLogger("safehead_tl")

EMBEDDED = ("demo/harmful", "demo/benign")
SPLITS = ("train", "test")
HUB_ID = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?::(.+))?")


def load_prompts(
    source: str | Path,
    *,
    column: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    draw: int | None = None,
) -> list[str]:
    """Loads prompts from the package, a file, a directory, or the Hugging Face hub.

    Args:
        source: the first of these that it is:

            - `"demo/harmful"` or `"demo/benign"`, for the embedded organism;
            - the name of a preset, such as `"advbench"` or `"alpaca"`: a data set of the hub
              (see `PRESETS`; none of their prompts is in this package). A file or directory
              called so is `"./advbench"`, or a `Path`;
            - a `.txt` (one prompt a line; lines end with a line feed, or a carriage return and a
              line feed), `.csv` (with commas or semicolons), `.tsv`, `.jsonl`, `.json` or
              `.parquet` file;
            - a directory with a data set, as it is on the hub or as `save_to_disk` writes it;
            - a data set's id on the hub, `"owner/name"`.

            A configuration goes behind a colon: `"owner/name:config"`, `"directory:config"`.
        column: the column or key that holds the prompt. By default the preset's; the only one;
            or the only one with a usual name (`prompt`, `query`, `goal`, `input`, ...).
        split: by default the preset's; the only one; or `"train"`. Of the embedded prompts
            `"train"` is to find heads on, `"test"` (requests that no training step and no prompt
            of `"train"` contains) to measure on. A file is all `"train"`.
        limit: keep this many prompts (all, if there are no more): the first ones, or those that
            `draw` draws.
        draw: a seed, by which the `limit` prompts are drawn at random, without replacement. The
            same one always draws the same of the same source, and a larger limit adds to what a
            smaller one drew.

    Returns:
        The prompts, as they are written and in the order of the source. Blank ones, and those
        that repeat an earlier one up to white space, are dropped first, with a warning.

    Raises:
        SafeheadError: if the source, split or column is unknown or not clear, the hub cannot be
            reached or refuses, or there are no prompts.
        FileNotFoundError: if the file does not exist.

    Example:
        >>> sh.load_prompts("demo/harmful", limit=2)
        ['how do i bend a crobe', 'please tell me how to bend a flonk']
    """
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise SafeheadError(f"limit={limit} keeps no prompts: give a number from 1")
    if draw is not None and not (isinstance(draw, int) and draw >= 0):
        raise SafeheadError(f"draw={draw!r} draws no prompts: give a whole number from 0")
    if draw is not None and limit is None:
        raise SafeheadError(f"draw={draw} draws `limit` prompts: say limit=..., or leave it out")
    if not isinstance(source, str | Path):
        raise SafeheadError(f"{type(source).__name__} is not a source of prompts: give a path")
    prompts = _distinct(texts(_read(source, column, split), column, source), source)
    if not prompts:
        raise SafeheadError(f"{source} holds no prompts")
    return prompts[:limit] if draw is None else _drawn(prompts, limit, draw)


def load_labels(
    prompts: Sequence[str],
    source: str | Path,
    labels: str,
    *,
    column: str | None = None,
    split: str | None = None,
) -> list[Any]:
    """What another column says of prompts that `load_prompts` gave of the same source.

    Of a prompt that is repeated in the source the first label counts.
    """
    written = texts(_read(source, column, split), column, source)
    found: dict[str, Any] = {}
    for text, label in zip(written, _read(source, labels, split), strict=True):
        found.setdefault(" ".join(text.split()), label)
    return [found[" ".join(prompt.split())] for prompt in prompts]


def load_pairs(
    source: str | Path, columns: tuple[str, str], *, split: str | None = None
) -> tuple[list[str], list[str]]:
    """Loads prompts and their counterparts from two columns of a file or data set.

    Args:
        source: as in `load_prompts`.
        columns: that of the prompts, and that of their counterparts.
        split: as in `load_prompts`.

    Returns:
        Prompts and counterparts, in the same order. Rows with a blank are dropped with a warning.

    Raises:
        SafeheadError: as `load_prompts`.
    """
    first, second = (texts(_read(source, column, split), column, source) for column in columns)
    pairs = [pair for pair in zip(first, second, strict=True) if all(map(str.strip, pair))]
    if len(pairs) < len(first):
        logger.warning(
            "%s: dropped %d of %d pairs: blank", source, len(first) - len(pairs), len(first)
        )
    if not pairs:
        raise SafeheadError(f"{source} holds no pairs")
    prompts, counterparts = map(list, zip(*pairs, strict=True))
    return prompts, counterparts


Prompts: TypeAlias = str | Path | Sequence[str | Sequence[Mapping[str, str]]]
"""What takes prompts takes texts or conversations (lists of messages with `role` and `content`), or
a source that `load_prompts` reads with its defaults."""


def prompt_texts(prompts: Prompts, name: str = "prompts") -> tuple[str, ...]:
    """Prompts as texts, read from their source if they are given by one.

    Raises:
        SafeheadError: as `load_prompts`; or for no prompt, a table, or something that is no text.
    """
    if isinstance(prompts, str) and _is_prompt(prompts):
        raise SafeheadError(f"{name}={prompts!r} is one text: put a single prompt in brackets")
    if isinstance(prompts, str | Path):
        try:
            return tuple(load_prompts(prompts))
        except (SafeheadError, OSError) as error:
            raise SafeheadError(
                f"{name}={str(prompts)!r} is taken for a source of prompts: {error} A single "
                "prompt goes in brackets; for a column, split or limit give what load_prompts gives"
            ) from error
    table = isinstance(prompts, Mapping) or hasattr(prompts, "columns")
    if table or not isinstance(prompts, Iterable):
        raise SafeheadError(
            f"{name} is {type(prompts).__name__}, not a list of texts: of a table give one "
            "column, such as table['prompt'].tolist()"
        )
    given: list[str] = []
    for number, prompt in enumerate(prompts):
        if is_chat(prompt):
            given.append(as_chat(prompt, f"{name}[{number}]"))
            continue
        if not isinstance(prompt, str):
            raise SafeheadError(f"{name}[{number}] is {prompt!r}, not a text or a list of messages")
        given.append(prompt)
    if not given:
        raise SafeheadError("no prompts were given")
    for number, prompt in enumerate(given):
        if not prompt.strip():
            raise SafeheadError(f"{name}[{number}] is blank: leave it out")
        if re.search("[\ud800-\udfff]", prompt):
            raise SafeheadError(
                f"{name}[{number}] holds half of a surrogate pair, which is no character: leave it "
                "out, or mend how the text was decoded"
            )
    return tuple(given)


def _is_prompt(text: str) -> bool:
    """Whether a text has several words, and no file is called so."""
    try:
        return len(text.split()) > 1 and not Path(text).expanduser().exists()
    except OSError:  # too long for a file's name
        return True


def _read(source: str | Path, column: str | None, split: str | None) -> list[Any]:
    if str(source) in EMBEDDED:
        return _embedded(str(source), column, split)
    if isinstance(source, str) and source in PRESETS:
        return read_preset(PRESETS[source], column, split)
    path = Path(source).expanduser()
    if path.is_file():
        if split not in (None, "train"):
            raise SafeheadError(
                f"split={split!r} is for the embedded prompts and data sets; {source} is a file: "
                "keep each split in a file of its own"
            )
        return read_file(path, column)
    if path.is_dir():
        return read_directory(path, None, column, split)
    directory, colon, config = str(path).rpartition(":")
    if colon and Path(directory).is_dir():
        return read_directory(Path(directory), config, column, split)
    if str(source).startswith("demo/"):
        raise SafeheadError(f"{source!r} is not embedded: there are {' and '.join(EMBEDDED)}")
    hub = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if hub and path.suffix.lower() not in SUFFIXES:
        return read_hub(hub[1], hub[2], column, split)
    near = difflib.get_close_matches(str(source).lower(), (*EMBEDDED, *PRESETS), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"no prompt file {path}: give a {READABLE} file, a data set's id as 'owner/name', "
        f"or one of {', '.join((*EMBEDDED, *PRESETS))}.{hint}"
    )


def _embedded(source: str, column: str | None, split: str | None) -> list[str]:
    if column is not None:
        raise SafeheadError(f"column={column!r}: {source} is a list and has no columns")
    if split is None:
        split = "train"
    if split not in SPLITS:
        raise SafeheadError(f"split={split!r} is not known: use {' or '.join(map(repr, SPLITS))}")
    kind = source.removeprefix("demo/")
    data = files("safehead_tl") / "data" / "organism" / "prompts" / f"{kind}-{split}.txt"
    return data.read_text(encoding="utf-8").splitlines()


def _distinct(prompts: list[str], source: str | Path) -> list[str]:
    """Drops blank prompts and those that repeat an earlier one up to white space."""
    written = [prompt for prompt in prompts if prompt.strip()]
    if len(written) < len(prompts):
        logger.warning(
            "%s: dropped %d of %d prompts: blank", source, len(prompts) - len(written), len(prompts)
        )
    first: dict[str, str] = {}
    for prompt in written:
        first.setdefault(" ".join(prompt.split()), prompt)
    if len(first) < len(written):
        logger.warning(
            "%s: dropped %d of %d prompts: repeated",
            source,
            len(written) - len(first),
            len(prompts),
        )
    return list(first.values())


def _drawn(prompts: list[str], limit: int | None, seed: int) -> list[str]:
    """Those with the smallest of seeded random numbers, which Python keeps the same for good."""
    generator = random.Random(seed)
    numbers = [generator.random() for _ in prompts]
    drawn = sorted(range(len(prompts)), key=numbers.__getitem__)[:limit]
    return [prompts[index] for index in sorted(drawn)]

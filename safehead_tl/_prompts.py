"""Prompts: the embedded ones, and readers for the files in which users keep theirs."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from safehead_tl._errors import SafeheadError

logger = logging.getLogger(__name__)

EMBEDDED = ("demo/harmful", "demo/benign")
SPLITS = ("train", "test")
USUAL_COLUMNS = (
    "prompt",
    "query",
    "goal",
    "input",
    "instruction",
    "question",
    "behavior",
    "behaviour",
    "request",
    "text",
)


def load_prompts(
    source: str | Path,
    *,
    column: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> list[str]:
    """Loads prompts from the package or from a file.

    Args:
        source: `"demo/harmful"` or `"demo/benign"` (for the embedded organism), or a path to a
            `.txt` (one prompt a line), `.csv`, `.tsv`, `.jsonl` or `.json` file.
        column: the column or key that holds the prompt. By default the only one, or the only
            one with a usual name (`prompt`, `query`, `goal`, `input`, ...).
        split: `"train"` to find heads on, `"test"` (requests that no training step and no
            prompt of `"train"` contains) to measure on. Only the embedded prompts are split.
        limit: keep the first `limit` prompts.

    Returns:
        The prompts in the order of the source. Blank ones are dropped, with a warning.

    Raises:
        SafeheadError: if the source or column is unknown, or holds no prompts.
        FileNotFoundError: if the file does not exist.
    """
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise SafeheadError(f"limit={limit} keeps no prompts: give a number from 1")
    if not isinstance(source, str | Path):
        raise SafeheadError(f"{type(source).__name__} is not a source of prompts: give a path")
    if str(source) in EMBEDDED:
        if column is not None:
            raise SafeheadError(f"column={column!r}: {source} is a list and has no columns")
        prompts = _embedded(str(source), split)
    elif str(source).startswith("demo/"):
        raise SafeheadError(f"{source!r} is not embedded: there are {' and '.join(EMBEDDED)}")
    else:
        if split != "train":
            raise SafeheadError(
                f"split={split!r} is for the embedded prompts; {source} is a file: "
                "keep each split in a file of its own"
            )
        prompts = _from_file(Path(source), column)
    kept = [prompt for prompt in prompts if prompt.strip()]
    if len(kept) < len(prompts):
        logger.warning("%s: dropped %d blank prompts", source, len(prompts) - len(kept))
    if not kept:
        raise SafeheadError(f"{source} holds no prompts")
    return kept[:limit]


def _embedded(source: str, split: str) -> list[str]:
    if split not in SPLITS:
        raise SafeheadError(f"split={split!r} is not known: use {' or '.join(map(repr, SPLITS))}")
    kind = source.removeprefix("demo/")
    data = files("safehead_tl") / "data" / "organism" / "prompts" / f"{kind}-{split}.txt"
    return data.read_text(encoding="utf-8").splitlines()


def _from_file(path: Path, column: str | None) -> list[str]:
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no prompt file {path}: give a .txt, .csv, .tsv, .jsonl or .json file, "
            f"or one of {', '.join(EMBEDDED)}"
        )
    if column is not None and path.suffix.lower() == ".txt":
        raise SafeheadError(f"column={column!r}: {path} is a text file and has no columns")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SafeheadError(
            f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8"
        ) from error
    match path.suffix.lower():
        case ".txt":
            return text.removesuffix("\n").split("\n")
        case ".csv" | ".tsv" as suffix:
            dialect = "excel-tab" if suffix == ".tsv" else "excel"
            return _pick(_rows(text, dialect, path), column, path)
        case ".jsonl":
            lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
            return _pick([_json(line, path, n) for n, line in lines], column, path)
        case ".json":
            records = _json(text, path)
            if not isinstance(records, list):
                raise SafeheadError(f"{path} must hold a list of strings or of objects")
            return _pick(records, column, path)
        case suffix:
            raise SafeheadError(
                f"{path}: files that end in {suffix or 'nothing'!r} are not read; "
                "use .txt, .csv, .tsv, .jsonl or .json"
            )


def _rows(text: str, dialect: str, path: Path) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise SafeheadError(f"{path}, line {reader.line_num}, cannot be read: {error}") from error
    header = reader.fieldnames or []
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise SafeheadError(
            f"{path} is not separated as its name says: commas in .csv, tabs in .tsv"
        )
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise SafeheadError(
                f"{path}: record {number} has more or fewer cells than the header: "
                "put prompts that contain a comma in double quotes"
            )
    return rows


def _json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line}" if line is not None else f"line {error.lineno}"
        raise SafeheadError(f"{path}, {where}, is not valid JSON: {error.msg}") from error


def _pick(records: Iterable[Any], column: str | None, path: Path) -> list[str]:
    """Takes the prompt out of each record: a string, or one column of a mapping."""
    records = list(records)
    if column is None and all(isinstance(record, str) for record in records):
        return records
    if not all(isinstance(record, Mapping) for record in records):
        raise SafeheadError(
            f"{path} mixes strings and objects, or holds neither: "
            "use strings only, or objects with a column each"
        )
    columns = list(dict.fromkeys(key for record in records for key in record))
    name = column if column is not None else _usual_column(columns, path)
    if name not in columns:
        raise SafeheadError(f"{path} has no column {name!r}: it has {', '.join(columns)}")
    prompts = []
    for number, record in enumerate(records, 1):
        value = record.get(name)
        if not isinstance(value, str):
            raise SafeheadError(
                f"{path}: record {number} has no text in column {name!r} (found {value!r})"
            )
        prompts.append(value)
    return prompts


def _usual_column(columns: list[str], path: Path) -> str:
    usual = [column for column in columns if column.strip().lower() in USUAL_COLUMNS]
    if len(usual) == 1:
        return usual[0]
    if len(columns) == 1 and " " not in columns[0].strip():
        return columns[0]
    if len(columns) == 1:
        raise SafeheadError(
            f"{path}: its first row {columns[0]!r} looks like a prompt, not a column's name: "
            "add a header row, or use a .txt file with one prompt a line"
        )
    raise SafeheadError(
        f"{path}: which column holds the prompts? Say column=..., one of {', '.join(columns)}"
    )

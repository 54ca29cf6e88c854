"""Prompts from one local file: text, CSV, TSV, JSON, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from safehead_tl.errors import SafeheadError
from safehead_tl.models import words
from safehead_tl.prompts.columns import choose_column

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")
READABLE = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def read_file(path: Path, column: str | None) -> list[Any]:
    """Reads the prompts of a file that exists, by its suffix.

    Raises:
        SafeheadError: naming the file and, where it can be, the line or record.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SafeheadError(
            f"{path}: files that end in {suffix or 'nothing'!r} are not read; use {READABLE}"
        )
    if suffix == ".parquet":
        return _from_parquet(path, column)
    if column is not None and suffix == ".txt":
        raise SafeheadError(f"column={column!r}: {path} is a text file and has no columns")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # carriage returns and all
    except UnicodeDecodeError as error:
        raise SafeheadError(
            f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8"
        ) from error
    match suffix:
        case ".txt":
            return re.split("\r?\n", re.sub("\r?\n$", "", text))
        case ".csv" | ".tsv":
            return _cells(text, "\t" if suffix == ".tsv" else ",", column, path)
        case ".jsonl":
            lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
            return _pick([_json(line, path, n) for n, line in lines], column, path)
        case _:
            records = _json(text, path)
            if not isinstance(records, list):
                raise SafeheadError(f"{path} must hold a list of strings or of objects")
            return _pick(records, column, path)


def _from_parquet(path: Path, column: str | None) -> list[Any]:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise SafeheadError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from error
    except (OSError, ValueError) as error:  # what pyarrow raises derives from these
        raise SafeheadError(f"{path} cannot be read as Parquet: {words(error)}") from error
    frame.columns = [str(name) for name in frame.columns]
    name = choose_column(list(frame.columns), column, path)
    return frame[name].tolist()


def _cells(text: str, separator: str, column: str | None, path: Path) -> list[str]:
    """One column of a table whose records end with a line feed, after a carriage return or not."""
    first = text.split("\n", 1)[0]
    if separator == "," and "," not in first and ";" in first:
        separator = ";"  # as spreadsheets write where the comma is in numbers
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator)
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise SafeheadError(
            f"{path}, line {reader.line_num}, cannot be read ({error}): put prompts that contain "
            "a line's end or a carriage return in double quotes"
        ) from error
    finally:
        csv.field_size_limit(limit)
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise SafeheadError(
            f"{path} is not separated as its name says: commas or semicolons in .csv, tabs in .tsv"
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise SafeheadError(
                f"{path}: record {number} has more or fewer cells than the header: "
                "put prompts that contain a comma in double quotes"
            )
    name = choose_column(header, column, path)
    return [row[header.index(name)] for row in rows]


def _json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line}" if line is not None else f"line {error.lineno}"
        raise SafeheadError(f"{path}, {where}, is not valid JSON: {error.msg}") from error


def _pick(records: list[Any], column: str | None, path: Path) -> list[Any]:
    """Takes the prompt out of each record: a string, or one column of a mapping."""
    if column is None and all(isinstance(record, str) for record in records):
        return records
    if not all(isinstance(record, Mapping) for record in records):
        raise SafeheadError(
            f"{path} mixes strings and objects, or holds neither: "
            "use strings only, or objects with a column each"
        )
    columns = list(dict.fromkeys(key for record in records for key in record))
    name = choose_column(columns, column, path)
    return [record.get(name) for record in records]

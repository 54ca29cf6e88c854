"""Which column of a table holds the prompts, and that it holds texts."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

from safehead_tl.errors import SafeheadError
from safehead_tl.prompts.chats import as_chat, is_chat

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


def choose_column(columns: Sequence[str], column: str | None, where: object) -> str:
    """The column that was named; else the only one, or the only one with a usual name.

    Raises:
        SafeheadError: naming `where`, if there is no such column, or more than one could be it.
    """
    told = ", ".join(" ".join(name.split()) for name in columns)  # a sentence is one line
    twice = [name for name in columns if columns.count(name) > 1]
    if twice and column in (None, *twice):
        raise SafeheadError(f"{where} has several columns {twice[0]!r}: rename all but one")
    if column is not None:
        if column not in columns:
            near = [
                name for name in columns if name.casefold().strip() == column.casefold().strip()
            ]
            near = near or difflib.get_close_matches(column, columns, n=1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise SafeheadError(f"{where} has no column {column!r}: it has {told}{hint}")
        return column
    usual = [name for name in columns if name.strip().lower() in USUAL_COLUMNS]
    usual = usual or [name for name in columns if name == "messages"]
    if len(usual) == 1:
        return usual[0]
    if len(columns) == 1 and " " not in columns[0].strip():
        return columns[0]
    if len(columns) == 1:
        raise SafeheadError(
            f"{where}: its first row {columns[0]!r} looks like a prompt, not a column's name: "
            "add a header row, or use a .txt file with one prompt a line"
        )
    if not columns:
        raise SafeheadError(f"{where} has no columns")
    raise SafeheadError(f"{where}: which column holds the prompts? Say column=..., one of {told}")


def texts(values: Iterable[Any], column: str | None, where: object) -> list[str]:
    """The values of a column, which was named or not; a list of messages is a conversation.

    Raises:
        SafeheadError: naming `where` and the record, if one of them is no text.
    """
    checked = []
    for number, value in enumerate(values, 1):
        if hasattr(value, "tolist"):  # a list in a Parquet file
            value = value.tolist()  # noqa: PLW2901
        if isinstance(value, list) and value and is_chat(value):
            value = as_chat(value, f"{where}: record {number}")  # noqa: PLW2901
        if not isinstance(value, str):
            named = "" if column is None else f" in column {column!r}"
            raise SafeheadError(
                f"{where}: record {number} has no text{named} (found {reprlib.repr(value)})"
            )
        checked.append(value)
    return checked

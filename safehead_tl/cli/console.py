"""Where the command prints, and the files that it writes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from safehead_tl.errors import SafeheadError
from safehead_tl.results import write_atomically

console = Console(markup=False)


def require_files(*paths: Path | None) -> None:
    """Refuses output paths that cannot be written, before any work is done."""
    for path in paths:
        if path is not None and path.is_dir():
            raise SafeheadError(f"{path} is a directory: give the name of a file to write")
        if path is not None and str(path) != "-":
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise SafeheadError(f"{path} cannot be written: {path.parent} is not open to you")


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Writes a result as JSON, to a file or (`-`) to standard output."""
    if path is None:
        return
    text = json.dumps(content, indent=1, default=str) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_atomically(path, text.encode())


def require_page(option: str, path: Path | None) -> None:
    """Refuses a page that is not called so."""
    if path is not None and path.suffix != ".html":
        raise SafeheadError(f"{option} {path}: this is a page, name it .html")

"""Where the command prints, and the files that it writes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, runtime_checkable

import typer
from rich.console import Console, RenderableType
from rich.text import Text
from typing_extensions import override

from safehead_tl.errors import SafeheadError

if TYPE_CHECKING:
    import plotly.graph_objects as go

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Console(Console):
    """Shows control characters, by which a name could give orders to the terminal."""

    @override
    def render_str(self, text: str, **told: Any) -> Text:
        return super().render_str(visible(text), **told)


def visible(text: str) -> str:
    """A text whose control characters are written out."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


console = _Console(markup=False)


@runtime_checkable
class Result(Protocol):
    """What every command can write."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        ...


@runtime_checkable
class SavedResult(Result, Protocol):
    """What can also be saved whole."""

    def save(self, path: str | Path) -> None:
        """Saves everything to one safetensors file."""
        ...


@dataclass(frozen=True)
class Output:
    """Options of a command that gives numbers."""

    panel: ClassVar[str] = "Output"
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON ('-': print it).")
    ] = None

    def check(self) -> None:
        """Refuses files that cannot be written, before any work is done."""
        require_files(self.json_out)

    def tell(self, *parts: RenderableType) -> None:
        """Prints, unless JSON is to be all that is printed."""
        if str(self.json_out) != "-":
            for part in parts:
                console.print(part)

    def write(self, result: Result | dict[str, Any]) -> None:
        """Writes JSON, to a file or to standard output."""
        if self.json_out is None:
            return
        from safehead_tl.results import write_atomically

        content = result if isinstance(result, dict) else result.to_dict()
        text = json.dumps(content, indent=1, default=str) + "\n"
        if str(self.json_out) == "-":
            sys.stdout.write(text)
        else:
            write_atomically(self.json_out, text.encode())


@dataclass(frozen=True)
class DrawnOutput(Output):
    """Options of a command whose result can be drawn."""

    figure: Annotated[Path | None, typer.Option(help="Write the figure as one .html file.")] = None

    def check(self) -> None:
        """Refuses files that cannot be written or are misnamed, before any work is done."""
        require_page("--figure", self.figure)
        require_files(self.json_out, self.figure)

    def draw(self, draw: Callable[[], go.Figure]) -> None:
        """Writes a figure, if one is asked for."""
        if self.figure is not None:
            from safehead_tl.results import write_atomically

            write_atomically(self.figure, draw().to_html().encode())


@dataclass(frozen=True)
class SavedOutput(DrawnOutput):
    """Options of a command whose result can be drawn, and saved to be read again."""

    save: Annotated[Path | None, typer.Option(help="Save the result (.safetensors).")] = None

    def check(self) -> None:
        """Refuses files that cannot be written or are misnamed, before any work is done."""
        super().check()
        require_files(self.save)

    def keep(self, result: SavedResult, draw: Callable[[], go.Figure]) -> None:
        """Writes all that is asked for."""
        if self.save is not None:
            result.save(self.save)
        self.write(result)
        self.draw(draw)


def require_files(*paths: Path | None) -> None:
    """Refuses output paths that cannot be written."""
    for path in paths:
        if path is not None and path.is_dir():
            raise SafeheadError(f"{path} is a directory: give the name of a file to write")
        if path is not None and str(path) != "-":
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise SafeheadError(f"{path} cannot be written: {path.parent} is not open to you")


def require_page(option: str, path: Path | None) -> None:
    """Refuses a page that is not called so."""
    if path is not None and path.suffix != ".html":
        raise SafeheadError(f"{option} {path}: this is a page, name it .html")

"""Where the command prints, and the files that it writes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import typer
from rich.console import Console, RenderableType
from rich.text import Text
from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.writing import as_json, check_file, write_file, write_page

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


SUFFIXES = {"--figure": ".html", "--out": ".html", "--save": ".safetensors", "--inspect": ".json"}

Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there, whoever wrote it.")
]


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

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Saves everything to one safetensors file."""
        ...


@dataclass(frozen=True)
class Output:
    """Options of a command that gives numbers."""

    panel: ClassVar[str] = "Output"
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON ('-': print it).")
    ] = None
    overwrite: Overwrite = False

    def files(self) -> dict[str, Path | None]:
        """The files that are asked for, by their options."""
        return {"--json": self.json_out}

    def tell(self, *parts: RenderableType) -> None:
        """Prints, unless JSON is to be all that is printed."""
        if str(self.json_out) != "-":
            show(*parts)

    def write(self, result: Result | dict[str, Any]) -> None:
        """Writes JSON, to a file or to standard output."""
        if self.json_out is None:
            return
        text = as_json(result)
        if str(self.json_out) == "-":
            with _printing():
                sys.stdout.write(text)
        else:
            write_file(self.json_out, text.encode(), overwrite=self.overwrite)


@dataclass(frozen=True)
class DrawnOutput(Output):
    """Options of a command whose result can be drawn."""

    figure: Annotated[Path | None, typer.Option(help="Write the figure as one .html file.")] = None

    @override
    def files(self) -> dict[str, Path | None]:
        return {**super().files(), "--figure": self.figure}

    def draw(self, draw: Callable[[], go.Figure]) -> None:
        """Writes a figure, if one is asked for."""
        if self.figure is not None:
            write_page(self.figure, draw().to_html(), overwrite=self.overwrite)


@dataclass(frozen=True)
class SavedOutput(DrawnOutput):
    """Options of a command whose result can be drawn, and saved to be read again."""

    save: Annotated[Path | None, typer.Option(help="Save the result (.safetensors).")] = None

    @override
    def files(self) -> dict[str, Path | None]:
        return {**super().files(), "--save": self.save}

    def keep(
        self, result: SavedResult, draw: Callable[[], go.Figure], **more: Result | None
    ) -> None:
        """Writes all that is asked for; in JSON also what else there is, by its name."""
        if self.save is not None:
            result.save(self.save, overwrite=self.overwrite)
        self.draw(draw)
        told = {name: each.to_dict() for name, each in more.items() if each is not None}
        self.write({**result.to_dict(), **told})


def check_outputs(
    files: Mapping[str, Path | None], others: Iterable[object], overwrite: bool
) -> None:
    """Refuses files, by option, that may not be written: as `check_file`, or if two are one.

    `others` is everything else that the command was given: no file among it is written to.
    """
    taken = {}
    for other in others:
        for each in other if isinstance(other, list) else [other]:
            if isinstance(each, str | Path):
                taken[Path(each).resolve()] = "something else that this command is given"
    for option, path in files.items():
        if path is not None and str(path) != "-":
            check_file(path, SUFFIXES.get(option, ""), overwrite=overwrite)
            place = path.resolve()
            if place in taken:
                raise SafeheadError(f"{option} {path} is also {taken[place]}: give another file")
            taken[place] = option


def show(*parts: RenderableType) -> None:
    """Prints to standard output."""
    with _printing():
        for part in parts:
            console.print(part)


@contextmanager
def _printing() -> Iterator[None]:
    """Says in a sentence why something could not be printed."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # It would come again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SafeheadError(
            f"standard output cannot be written: {error.strerror}. Files that were asked for are "
            "whole"
        ) from error

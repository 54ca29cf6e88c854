"""The one door through which files and directories are written: whole, and over nobody else's.

What is written has a name beside its place until it is whole, and then takes the place in one step.
A file may be written where nothing is, and over what this toolkit wrote, which it knows by the
first bytes. A directory is replaced only if that is asked for and all in it is as it was written
here, which a list of digests in it tells.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from safehead_tl.errors import SafeheadError

NAME = "safehead_tl"
RESULT = f'{{"__metadata__":{{"{NAME}":"'.encode()
PAGE = f"<!-- written by {NAME} -->\n".encode()
RECORD = f'{{\n "written_by": "{NAME}'.encode()
LISTED = f"{NAME}.json"
"""In a directory that was written here: all files in it, each with its SHA-256."""

OVERWRITE = "overwrite it (overwrite=True, on the command line --overwrite)"
ASIDE = "_old"
CLOCKS = 10
"""Seconds by which a disk's clock and that of processes may differ."""

_spaces = Path("/proc/self/ns/pid")
_space = _spaces.stat().st_ino if _spaces.exists() else ""
HERE = hashlib.sha256(f"{platform.node()} {_space}".encode()).hexdigest()[:8]
"""This machine or container, in names of unfinished files: processes of another are not seen."""

_open: set[str] = set()
"""The names of what this process is writing."""


@contextmanager
def said_plainly(path: str | Path) -> Iterator[None]:
    """Says in a sentence which file or directory could not be written, and why."""
    try:
        yield
    except Exception as error:
        # Libraries in Rust have no OSError, and say it in these words.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SafeheadError(f"{path} cannot be written: {reason}") from error


def check_file(path: str | Path, suffix: str = "", *, overwrite: bool = False) -> None:
    """Refuses a file that may not be written or cannot be.

    Args:
        path: the file. A pipe or device is no file: what is written goes into it.
        suffix: what its name must end with, if that matters.
        overwrite: it may be replaced whoever wrote it.

    Raises:
        SafeheadError: if it is a directory or misnamed, its folder is missing or closed, or
            something is there that this toolkit did not write.
    """
    path = Path(path).expanduser()
    with said_plainly(path):
        place = path.resolve()
        if _is_stream(path):
            return
        if place.is_dir():
            raise SafeheadError(f"{path} is a directory: give the name of a file to write")
        if path.suffix != suffix and suffix:
            raise SafeheadError(f"{path}: name it {suffix}, which is what is written")
        if not place.parent.is_dir():
            raise SafeheadError(f"{path} cannot be written: make the folder {path.parent} first")
        if not os.access(place.parent, os.W_OK):
            raise SafeheadError(f"{path} cannot be written: {path.parent} is not open to you")
        if place.is_file() and not overwrite and not _is_ours(place):
            raise SafeheadError(
                f"{path} holds something that {NAME} did not write: give another name, or "
                f"{OVERWRITE}"
            )


def write_file(
    path: str | Path, content: bytes, suffix: str = "", *, overwrite: bool = False
) -> None:
    """Writes a file whole or not at all; `check_file` says what may be written.

    A file that is replaced hands on its permissions.

    Raises:
        SafeheadError: as `check_file`, or if it cannot be written, such as on a full disk.
    """
    path = Path(path).expanduser()
    check_file(path, suffix, overwrite=overwrite)
    with said_plainly(path):
        if _is_stream(path):
            with path.open("ab") as stream:
                stream.write(content)
            return
        place = path.resolve()
        _clear(place)
        unfinished = _beside(place)
        try:
            _open.add(unfinished.name)
            with unfinished.open("xb") as file:
                if place.is_file():
                    shutil.copymode(place, unfinished)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(place)
        finally:
            _open.discard(unfinished.name)
            unfinished.unlink(missing_ok=True)


def as_json(result: Any) -> str:
    """A result, or its plain values, as JSON that says who wrote it."""
    told = result if isinstance(result, dict) else result.to_dict()
    content = {"written_by": f"{NAME} {version('safehead-tl')}", **told}
    return json.dumps(content, indent=1, default=str) + "\n"


def write_page(path: str | Path, page: str, *, overwrite: bool = False) -> None:
    """Writes HTML, with a first line that says who did; as `write_file`."""
    write_file(path, PAGE + page.encode(), ".html", overwrite=overwrite)


@contextmanager
def new_directory(
    path: str | Path, sources: Iterable[Path | None] = (), *, overwrite: bool = False
) -> Iterator[tuple[Path, Path]]:
    """A folder to write to, which takes the place of a directory when all has gone well.

    Until then that stays as it was. Whatever ends the process in between, whole is what is there;
    but where two directories cannot change their names in one step (outside Linux, and on some
    network disks), nothing may be there until the next write, which puts the old one back.
    What is replaced hands on its permissions.

    Args:
        path: the directory; links are followed, missing folders are made.
        sources: directories that are read, and never written to.
        overwrite: replace a directory that this toolkit wrote.

    Yields:
        The directory, and the folder beside it.

    Raises:
        SafeheadError: if it is a source, holds one or the working or home directory, cannot be
            written, is being written by another process, or is not empty and `overwrite` is off or
            something in it was not written here.
    """
    target = _check_directory(path, sources, overwrite)
    with said_plainly(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
    folder = _beside(target)
    try:
        _open.add(folder.name)
        with said_plainly(target):
            folder.mkdir()
            if target.is_dir():
                shutil.copymode(target, folder)
            if any(alive and other != folder for other, alive in _begun(target)):
                raise SafeheadError(f"{target} is being written by another run: wait for its end")
        yield target, folder
        with said_plainly(target):
            files = {
                str(file.relative_to(folder)): _digest(file) for file in sorted(_files(folder))
            }
            for name in files:
                if (target / name).is_file() and (folder / name).is_file():
                    shutil.copymode(target / name, folder / name)
            record = {"written_by": NAME, "files": files}
            (folder / LISTED).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
            _check_directory(path, sources, overwrite)  # it may hold something by now
            _put(folder, target)
    finally:
        _open.discard(folder.name)
        shutil.rmtree(folder, ignore_errors=True)


def _check_directory(path: str | Path, sources: Iterable[Path | None], overwrite: bool) -> Path:
    """The directory to write to, if it may be written."""
    target = Path(path).expanduser().resolve()
    for source in sources:
        if source is not None and source.resolve().is_relative_to(target):
            raise SafeheadError(
                f"{target} holds the source, which is never overwritten: give another directory"
            )
    for place in (Path.cwd().resolve(), Path.home().resolve()):
        if place.is_relative_to(target):
            raise SafeheadError(f"{path} holds {place}: give a directory inside it to write")
    if target.is_file():
        raise SafeheadError(f"{target} is a file: give the name of a directory to write")
    with said_plainly(target):
        if not target.is_dir() or not any(target.iterdir()):
            return target
        if not overwrite:
            raise SafeheadError(f"{target} is not empty: give another directory, or {OVERWRITE}")
        try:
            ours = dict(json.loads((target / LISTED).read_bytes())["files"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            ours = {}
        for file in _files(target):
            name = str(file.relative_to(target))
            if not _is_ours(file) and ours.get(name) != _digest(file):
                raise SafeheadError(
                    f"{target} holds {name}, which {NAME} did not write as it is, and does not "
                    "overwrite: give another directory"
                )
    return target


def _files(directory: Path) -> Iterator[Path]:
    """All that is in a directory and those in it, but for these themselves; links are not followed.

    An empty one counts as something that is there.
    """
    for entry in directory.iterdir():
        inside = entry.is_dir() and not entry.is_symlink() and any(entry.iterdir())
        yield from _files(entry) if inside else (entry,)


def _digest(path: Path) -> str:
    """The SHA-256 of a file; nothing for what is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_ours(path: Path) -> bool:
    """Whether a file is empty, or begins as what is written here."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        head = file.read(len(PAGE) + len(RESULT) + len(RECORD))
    return not head or head.startswith((PAGE, RECORD)) or head[8:].startswith(RESULT)


def _is_stream(path: Path) -> bool:
    """Whether it is written into, not replaced: a pipe, a device, this process's own output."""
    own = str(path.absolute()).startswith(("/dev/fd/", "/dev/std", "/proc/"))
    return own or (path.exists() and not path.is_file() and not path.is_dir())


def _beside(place: Path) -> Path:
    """A new name beside a place, for what is not finished."""
    return place.with_name(f".{place.name}.{os.getpid()}-{HERE}-{secrets.token_hex(4)}")


def _begun(place: Path) -> Iterator[tuple[Path, bool]]:
    """What was begun beside a place on this machine, and whether it is still being written.

    By this process, if it is open; by another, if that lives. One that is younger than what it is
    said to have written is another, with the same number.
    """
    start = f".{place.name}."
    pattern = re.compile(rf"(\d+)-{HERE}-\w+")
    for name in os.listdir(place.parent):  # noqa: PTH208, a path for each of 10,000 takes long
        if name.startswith(start) and (found := pattern.fullmatch(name, len(start))):
            entry = place.with_name(name)
            if int(found[1]) == os.getpid():
                yield entry, name.removesuffix(ASIDE) in _open
                continue
            try:
                begun = psutil.Process(int(found[1])).create_time()
                yield entry, begun <= entry.stat().st_mtime + CLOCKS
            except (psutil.Error, FileNotFoundError):
                yield entry, False


def _clear(place: Path) -> None:
    """Removes what dead processes left beside a place; a directory set aside goes back there."""
    for entry, alive in list(_begun(place)):
        if alive:
            continue
        if entry.name.endswith(ASIDE) and not place.exists():
            entry.rename(place)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _put(folder: Path, target: Path) -> None:
    """Puts a folder in a directory's place; in one step if that is empty, or on Linux."""
    if not target.is_dir() or not any(target.iterdir()):
        if target.is_dir():  # which Windows does not rename over
            target.rmdir()
        folder.rename(target)
    elif not _exchange(folder, target):
        aside = folder.with_name(folder.name + ASIDE)
        try:
            target.rename(aside)
            folder.rename(target)
        finally:
            if aside.is_dir():
                aside.rename(folder if target.is_dir() else target)


def _exchange(folder: Path, target: Path) -> bool:
    """Lets two directories change their names in one step, if the system and the disk can."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and not swap(here, os.fsencode(folder), here, os.fsencode(target), both)

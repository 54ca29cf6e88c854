"""Leases: which of several processes is at a piece of work, told by files that expire."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("safehead_tl")

EXPIRY = 60.0
"""Seconds after which a lease that nobody renews is void."""

BEATS = 6
"""How often a lease is renewed in that time."""


class Leases:
    """Leases on the pieces of a directory that processes share, on one machine or on several.

    A lease is a file that only one process can make, `NAME.0.lease`, and whose time it renews while
    it works. Who sees the time stand still for `EXPIRY` seconds of the own clock may make
    `NAME.1.lease`, which again only one can: so clocks of machines are never compared, and no file
    is taken from a process that may still be there. The highest number counts. A process that
    stood still and wakes up finishes its piece a second time, with the same result.

    Attributes:
        folder: where the files are.
        owner: what this process writes into its own.
    """

    def __init__(self, folder: Path, owner: str):
        self.folder = folder
        self.owner = owner
        self._seen: dict[Path, tuple[int, float]] = {}

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Whether this process, and no other, is at a piece now; until the end, if it is."""
        number = self._taken(name)
        if number is None:
            yield False
            return
        file = self._file(name, number)
        over = threading.Event()
        beat = threading.Thread(target=_renew, args=(file, over), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            over.set()
            beat.join()
            if not self._file(name, number + 1).exists():
                for each in range(number, -1, -1):
                    self._file(name, each).unlink(missing_ok=True)

    def _file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.lease"

    def _taken(self, name: str) -> int | None:
        """The number of a new lease, if nobody holds one that is renewed."""
        number, latest = 0, None
        while (file := self._file(name, number)).exists():
            number, latest = number + 1, file
        if latest is not None and not self._expired(latest):
            return None
        self.folder.mkdir(exist_ok=True)
        try:
            before = latest.read_text() if latest is not None else ""
            with file.open("x") as new:
                new.write(self.owner)
        except (FileExistsError, FileNotFoundError):  # another was first, or has just given back
            return None
        if latest is not None:
            logger.warning("%s: taken over from %s, which is gone or stands still", name, before)
        return number

    def _expired(self, file: Path) -> bool:
        try:
            with file.open("rb") as opened:  # over a network, only opening asks how it is now
                stamp = os.fstat(opened.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False  # just given back: whoever comes next sees
        before, since = self._seen.get(file, (None, 0.0))
        if stamp != before:
            self._seen[file] = stamp, time.monotonic()
            return False
        return time.monotonic() - since > EXPIRY

    def free(self, owner: str) -> None:
        """Gives back what was held by who is known to be gone, whose name begins so."""
        for file in self.folder.glob("*.lease"):
            try:
                if file.read_text().startswith(owner):
                    file.unlink()
            except FileNotFoundError:  # given back, or freed by another
                continue


def _renew(file: Path, over: threading.Event) -> None:
    while not over.wait(EXPIRY / BEATS):
        try:
            os.utime(file, ns=(time.time_ns(), time.time_ns()))
        except FileNotFoundError:
            return  # another, who took over, has cleared up

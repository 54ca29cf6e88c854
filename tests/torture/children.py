"""Work in a process of its own: killed, out of disk, or left to say how it went."""

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import safehead_tl as sh

STEPS = {
    "open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.chmod",
    "os.truncate", "shutil.rmtree",
}  # fmt: skip
"""What is done to files. Python says so of each before it does it."""


MEMORY = 16 * 2**30
"""Bytes of addresses that a process may have: a model of a billion layers is not to take all."""


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        how: `done`, `said` (one sentence), `raw` (another exception), `killed` or `hung`.
        told: what it gave or said.
        steps: how many steps in files it took.
    """

    how: str
    told: str
    steps: int = 0


class Child:
    """A process that does some work.

    Args:
        work: what it does; gives a text.
        folder: where steps in files are counted.
        die_at: `kill -9` before this step.
        largest: bytes that a file may have, as if the disk were full then.
    """

    def __init__(self, work, folder=None, die_at=None, largest=None):
        self._read, write = os.pipe()
        self.started = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._read)
            try:
                end = _end(work, str(folder), die_at, largest)
                os.write(write, json.dumps(end).encode())
            finally:
                os._exit(0)
        os.close(write)

    def wait(self, within=120.0, kill_after=None):
        """How it ended; `kill -9` after some seconds is meant, after `within` it counts as hung."""
        content, limit = b"", within if kill_after is None else kill_after
        while True:
            left = self.started + limit - time.perf_counter()
            ready, _, _ = select.select([self._read], [], [], max(0.0, left))
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                break
            part = os.read(self._read, 2**16)
            content += part
            if not part:
                break
        os.close(self._read)
        _, status = os.waitpid(self.pid, 0)
        if os.waitstatus_to_exitcode(status) == 0 and content:
            return End(*json.loads(content))
        if not ready and kill_after is None:
            return End("hung", f"more than {within:.0f} s")
        code = os.waitstatus_to_exitcode(status)
        return End("killed" if code == -signal.SIGKILL else "raw", f"signal {-code}")


def _end(work, folder, die_at, largest):
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    steps = 0

    def watch(event, arguments):
        nonlocal steps
        if event not in STEPS:
            return
        path, descriptors = arguments[0], arguments[1:]
        inside = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder)
        relative = event in ("os.remove", "os.rmdir") and descriptors[-1] != -1  # by rmtree
        if inside or relative:
            steps += 1
            if steps == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        told = work()
    except (sh.SafeheadError, FileNotFoundError) as error:
        text = str(error)
        return ("raw" if not text or "\n" in text.strip() else "said", text, steps)
    except BaseException:  # whatever it is, it is what was looked for
        return ("raw", traceback.format_exc()[-3000:], steps)
    return ("done", told, steps)


@contextmanager
def interrupted(seconds):
    """Ctrl-C after some seconds, unless the block is done before."""

    armed = True

    def interrupt(*_):
        if armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with suppress(KeyboardInterrupt):
        yield
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)

"""The command's way in: `safehead`, or `python -m safehead_tl`.

Before anything is imported that takes time, Ctrl-C is answered in a sentence, and output may be
closed: what nobody reads is no reason to lose a result.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130


class Unheard:
    """A stream whose reader may go away, as `head` does: what else is written is dropped."""

    def __init__(self, stream: Any, error: type[OSError]):
        self._stream, self._error = stream, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Sends what was written."""
        self._try(self._stream.flush)

    def _try(self, do: Callable[..., Any], *told: Any) -> None:
        try:
            do(*told)
        except self._error:  # and it would come again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def main() -> None:
    """Runs the command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _stop)
    # A stream that was closed before the process began is None.
    sys.stdout = Unheard(sys.stdout or io.StringIO(), BrokenPipeError)
    sys.stderr = Unheard(sys.stderr or io.StringIO(), OSError)
    try:
        from safehead_tl.cli.main import main as run

        run()
    finally:
        # An import that is broken off ends in errors of all kinds, which say nothing.
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            os._exit(INTERRUPTED)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Says what is kept, and ends the process; asked again, at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.unraisablehook = lambda _: os._exit(INTERRUPTED)
    goes_on = any(word.partition("=")[0] in ("--run-dir", "benchmark") for word in sys.argv[1:])
    sys.stderr.write(
        "\ninterrupted: finished pieces are kept, and the same command goes on from there\n"
        if goes_on
        else "\ninterrupted: no file is half written, and nothing else is kept (with --run-dir, "
        "finished pieces are)\n"
    )
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

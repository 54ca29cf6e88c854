"""The command's way in: Ctrl-C whenever it comes, and readers that go away."""

import errno
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext

import pytest

import safehead_tl.cli.main
from safehead_tl import __main__ as way_in

INTERRUPTED = """
    import os, signal, sys
    import safehead_tl.__main__ as way_in
    import safehead_tl.cli.main as cli

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it

    def ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

    def importing():
        try:
            ctrl_c()
        except BaseException as error:
            raise ImportError("initialization failed") from error

    def swallowed():
        try:
            ctrl_c()
        except BaseException:
            pass

    class Dying:
        def __del__(self):
            ctrl_c()

    def twice():
        try:
            ctrl_c()
        finally:
            ctrl_c()

    for run in (ctrl_c, importing, swallowed, Dying, twice):
        child = os.fork()
        if child == 0:
            cli.main = run
            way_in.main()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["ships", "--run-dir=run"], "finished pieces are kept, and the same command goes on"),
        (["ships", "--limit", "3"], "no file is half written, and nothing else is kept"),
    ],
)
def test_an_interrupt_is_one_line_whatever_it_meets(command, said):
    code = textwrap.dedent(INTERRUPTED)
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert [int(status) for status in done.stdout.split()] == [130] * 4 + [-signal.SIGINT]
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 5
    assert all(line.startswith("interrupted: ") and said in line for line in lines)


@pytest.fixture
def run(monkeypatch):
    """Runs something as the command."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    before = signal.getsignal(signal.SIGINT)

    def as_command(what):
        monkeypatch.setattr(safehead_tl.cli.main, "main", what)
        way_in.main()

    yield as_command
    signal.signal(signal.SIGINT, before)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("name", "error", "heard"),
    [
        ("stdout", BrokenPipeError(), False),
        ("stderr", BrokenPipeError(), False),
        ("stderr", FULL, False),
        ("stdout", FULL, True),
    ],
)
def test_a_reader_that_went_away_is_no_error(run, monkeypatch, tmp_path, name, error, heard):
    class Gone:
        stream = (tmp_path / "out").open("w")
        fileno = stream.fileno
        encoding = "utf-8"

        def write(self, text):
            raise error

        def flush(self):
            raise error

    def works():
        assert getattr(sys, name).encoding == "utf-8"
        assert getattr(sys, name).write("text") == 4
        getattr(sys, name).flush()

    with Gone.stream:
        monkeypatch.setattr(sys, name, Gone())
        with pytest.raises(OSError, match="No space") if heard else nullcontext():
            run(works)


def test_streams_that_were_closed_before(run, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    run(lambda: [stream.write("text") for stream in (sys.stdout, sys.stderr)])


def test_an_interrupt_that_is_to_be_ignored_is(run):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(lambda: None)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

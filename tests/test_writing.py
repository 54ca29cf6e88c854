"""Files and directories: whole or not at all, over nobody else's, and nothing is left behind."""

import os
import random
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.results import load_result, save_result
from safehead_tl.writing import HERE, check_file, new_directory, write_file, write_page


@pytest.fixture(scope="module")
def scores(demo, harmful):
    return sh.ships(demo, harmful[:3], candidates=["L1H3", "L0H0"], run=QUIET)


AT_EVERY_STEP = """
    import errno, os, pathlib, signal, sys
    import safehead_tl.writing as writing
    from safehead_tl.errors import SafeheadError

    root = pathlib.Path(sys.argv[1])
    STEPS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "os.listdir", "os.scandir"}

    def directory(text):
        with writing.new_directory(root / "out", overwrite=True) as (target, folder):
            with writing.said_plainly(target):
                (folder / "one").write_text(text)
                (folder / "deep").mkdir()
                (folder / "deep" / "two").write_text(text)

    def file(text):
        writing.write_file(root / "out.json", writing.RECORD + text.encode())

    def whole(write):
        # how many files there are, and what they hold: all the same
        if write is file:
            return 1, {(root / "out.json").read_bytes().removeprefix(writing.RECORD)}
        files = [path for path in (root / "out").rglob("*") if path.is_file()]
        return len(files), {path.read_bytes() for path in files if path.name in ("one", "two")}

    def tried(write, how, left, text):
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        def hook(event, args):
            nonlocal left
            if event in STEPS and str(args[0]).startswith(str(root)):
                left -= 1
                if left == 0 and how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif left == 0:
                    raise OSError(errno.ENOSPC, "No space left on device")

        sys.addaudithook(hook)
        try:
            write(text)
        except SafeheadError as error:
            os._exit(7 if f"{root}/out" in str(error) and "No space left" in str(error) else 8)
        os._exit(6 if left <= 0 else 0)

    for write in (directory, file):
        for exchange in (writing._exchange, lambda folder, target: False):
            writing._exchange = exchange
            for how in ("killed", "full"):
                write("0")
                ends, known = [], {b"0"}
                while not ends or ends[-1]:
                    text = f"{how} {len(ends)}"
                    ends.append(tried(write, how, len(ends) + 1, text))
                    if write is directory and not (root / "out").exists():
                        assert exchange.__name__ == "<lambda>" and how == "killed"
                        try:
                            with writing.new_directory(root / "out"):  # the next start
                                pass
                        except SafeheadError as error:
                            assert "is not empty" in str(error)
                    count, found = whole(write)
                    assert len(found) == 1 and count == (1 if write is file else 3)
                    assert found <= {text.encode(), *known}, (found, known)
                    known = found
                write("last")
                left = [path.name for path in root.rglob("*") if path.name.startswith(".")]
                print(write.__name__, how, set(ends[:-1]), left)
"""


def test_killed_or_full_at_every_step(tmp_path):
    """The old or the new is there, whole; a directory set aside comes back; nothing is left."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AT_EVERY_STEP), tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ends = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    # Each ended by the signal, or by the sentence; or the error came when all was in place.
    assert [end[:2] for end in ends] == [
        [kind, how] for kind in ("directory", "file") for how in ("killed", "full") * 2
    ]
    assert {end[2] for end in ends if end[1] == "killed"} == {"{-9} []"}
    assert {end[2] for end in ends if end[1] == "full"} <= {"{6, 7} []", "{7} []"}


def test_what_a_file_may_be_written_over(scores, tmp_path):
    path = tmp_path / "s.safetensors"
    scores.save(path)
    scores.save(path)
    path.write_bytes(b"")
    scores.save(path)
    path.write_text("years of work")
    with pytest.raises(sh.SafeheadError, match=r"s\.safetensors holds something that .* overwrite"):
        scores.save(path)
    assert path.read_text() == "years of work"
    scores.save(path, overwrite=True)
    page = tmp_path / "p.html"
    write_page(page, "<html>")
    write_page(page, "<html>again")
    assert page.read_text().endswith("\n<html>again")
    page.write_text("<html>mine")
    with pytest.raises(sh.SafeheadError, match="did not write"):
        write_page(page, "<html>")
    assert sorted(tmp_path.iterdir()) == [page, path]


def test_files_that_cannot_be_written(scores, tmp_path):
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "out.pt", r"out\.pt: name it \.safetensors"),
        (tmp_path / "no" / "s.safetensors", "make the folder .*no first"),
    ):
        with pytest.raises(sh.SafeheadError, match=message):
            scores.save(path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(sh.SafeheadError, match="cannot be written: No such file or directory"):
        write_file("/proc/none", b"")


def test_links_stay_and_what_they_lead_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_file(tmp_path / "link", b"content")
    assert (tmp_path / "there" / "file").read_bytes() == b"content"
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_or_device_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"content")
    reader.join()
    assert read == [b"content"]
    assert pipe.is_fifo()
    check_file("/dev/null", ".safetensors")
    write_file("/dev/null", b"content")
    with pytest.raises(sh.SafeheadError, match="/dev/full cannot be written: No space left"):
        write_file("/dev/full", b"content")


@pytest.mark.parametrize(
    ("pid", "age", "stays"),
    [(1, 0, True), (os.getpid(), 0, False), (os.getppid(), 1e9, False), (2**22 + 1, 0, False)],
    ids=["another's", "one's own, left by an interrupt", "the number used again", "dead"],
)
def test_what_is_left_behind_by_the_dead_is_cleared(tmp_path, pid, age, stays):
    left = tmp_path / f".out.json.{pid}-{HERE}-0a"
    other = tmp_path / f".else.out.json.{pid}-{HERE}-0a"
    for file in (left, other):
        file.touch()
        os.utime(file, (0, file.stat().st_mtime - age))
    write_file(tmp_path / "out.json", b"content")
    assert left.exists() == stays
    assert other.exists()


def test_one_directory_is_written_by_one_run_at_a_time(tmp_path):
    with new_directory(tmp_path / "out") as (target, folder):
        (folder / "one").touch()
        second = new_directory(tmp_path / "out")
        with pytest.raises(sh.SafeheadError, match="is being written by another run"):
            second.__enter__()
    assert sorted(file.name for file in target.iterdir()) == ["one", "safehead_tl.json"]
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupt_in_clearing_up_does_not_lock_the_directory(tmp_path, monkeypatch):
    def interrupt(*told, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "out"):
            1 / 0  # noqa: B018
    with new_directory(tmp_path / "out") as (target, _):
        pass
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_are_handed_on(tmp_path):
    def write():
        with new_directory(tmp_path / "out", overwrite=True) as (_, folder):
            (folder / "one").write_text("mine")

    write()
    told = {"out.json": 0o600, "out": 0o700, "out/one": 0o640}
    for name, mode in told.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    write()
    write_file(tmp_path / "out.json", b"content")
    assert {name: (tmp_path / name).stat().st_mode & 0o777 for name in told} == told


def test_home_is_known_by_its_sign(tmp_path, scores, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    scores.save("~/s.safetensors")
    assert sh.HeadScores.load("~/s.safetensors").unit == scores.unit
    assert (tmp_path / "s.safetensors").is_file()


def test_what_comes_to_a_directory_in_between_is_not_lost(tmp_path):
    writing = new_directory(tmp_path / "out")
    target, _ = writing.__enter__()
    target.mkdir()
    (target / "theirs").touch()
    with pytest.raises(sh.SafeheadError, match="is not empty"):
        writing.__exit__(None, None, None)
    assert list(tmp_path.rglob("*")) == [target, target / "theirs"]


@pytest.mark.parametrize(
    "foreign", ["src/mine.py", "src/config.json", ".git/config", "model-2.bin", "empty/"]
)
def test_a_directory_with_files_of_others_is_not_replaced(tmp_path, foreign):
    def write():
        with new_directory(tmp_path / "out", overwrite=True) as (_, folder):
            (folder / "src").mkdir()
            (folder / "src" / "config.json").write_text("{}")

    write()
    write()
    file = tmp_path / "out" / foreign
    file.mkdir() if foreign.endswith("/") else file.parent.mkdir(exist_ok=True)
    if not foreign.endswith("/"):
        file.write_text("years of work")
    with pytest.raises(sh.SafeheadError, match=rf"holds {foreign.rstrip('/')}, which .* did not"):
        write()
    assert file.exists()


def test_a_flipped_bit_is_found(scores, tmp_path):
    path = tmp_path / "s.safetensors"
    scores.save(path)
    content = path.read_bytes()
    for place in random.Random(0).sample(range(8 * len(content)), 200):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(sh.SafeheadError, match=r"is damaged|is no result in format"):
            sh.HeadScores.load(path)
    for damaged in (
        b"",
        content[:100],
        content[:-1],
        content + b"0",
        content.replace(b"F64", b"I64"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(sh.SafeheadError, match=r"is damaged|is no result in format"):
            sh.HeadScores.load(path)


def test_whole_files_that_lack_something_or_hold_too_much(scores, tmp_path):
    path = tmp_path / "s.safetensors"
    tensors, header = scores._to_file()
    wrong = [
        {key: value for key, value in header.items() if key != name} for name in ("given", "unit")
    ]
    wrong += [
        {**header, "provenance": {}},
        {**header, "provenance": {**header["provenance"], "more": 1}},
        {**header, "provenance": None},
        {**header, "given": ["L-1"]},
        {**header, "given": 3},
    ]
    for told in wrong:
        save_result(path, "HeadScores", tensors, told)
        with pytest.raises(sh.SafeheadError, match="does not hold a whole HeadScores"):
            sh.HeadScores.load(path)
    save_result(path, "HeadScores", {}, header)
    with pytest.raises(sh.SafeheadError, match="does not hold a whole HeadScores"):
        sh.HeadScores.load(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64, torch.float64])
def test_every_kind_of_tensor_comes_back(tmp_path, dtype):
    made = {"": torch.ones(3, 2, dtype=dtype).T, "one": torch.tensor(1, dtype=dtype)}
    save_result(tmp_path / "s.safetensors", "piece", made, {"0" * 64: "0" * 64})
    tensors, header = load_result(tmp_path / "s.safetensors", "piece")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in made.items())
    assert header["0" * 64] == "0" * 64


def test_errors_that_are_no_disks_are_left_alone(tmp_path):
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "out"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())

"""Long runs: kept piece by piece, continued after a kill, refused when they are another run."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

import safehead_tl as sh
from families import QUIET

ROWS = sh.Run(max_rows=8, progress=False)
SETTINGS = {"size": 2, "template": "paper", "run": ROWS}


def pieces(directory):
    return sorted((directory / "pieces").glob("*.safetensors"))


def same(one, two):
    return torch.equal(one.nan_to_num(-1), two.nan_to_num(-1))


@pytest.fixture
def search(demo, harmful, tmp_path):
    """Runs a Sahara that keeps its pieces, with other arguments where told."""

    def run(directory=tmp_path / "run", model=demo, prompts=harmful[:8], how=ROWS, **changes):
        run = dataclasses.replace(how, run_dir=directory)
        return sh.sahara(model, prompts, **{**SETTINGS, **changes, "run": run})

    return run


KILLED = """
    import os, pathlib, signal, sys
    import torch
    import safehead_tl as sh
    torch.set_num_threads(1)
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=8)
    replace = pathlib.Path.replace

    def search(kill_at):
        count = 0

        def dying(self, target):  # a file has another name yet, and is about to be in place
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        pathlib.Path.replace = dying
        run = sh.Run(max_rows=8, progress=False, run_dir=sys.argv[1])
        sh.sahara(model, prompts, size=2, template="paper", run=run)

    for kill_at in map(int, sys.argv[2:]):
        child = os.fork()  # a process of its own for each, and one import for all
        if child == 0:
            search(kill_at)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        kept = len(list(pathlib.Path(sys.argv[1], "pieces").glob("*.safetensors")))
        print(os.waitstatus_to_exitcode(status), kept)
"""


def test_killed_twice_and_started_again(demo, harmful, tmp_path, search):
    """`kill -9`; the result has the same bits as that of a run that was left alone."""
    undisturbed = sh.sahara(demo, harmful[:8], **SETTINGS)
    directory = tmp_path / "killed"
    code = textwrap.dedent(KILLED)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, directory, "1", "7", "30"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    ends = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    # The first to be written is the record of the run.
    assert ends == [(-signal.SIGKILL, kept) for kept in (0, 5, 34)]
    resumed = search(directory)
    assert resumed.heads == undisturbed.heads
    for one, two in zip(resumed.steps, undisturbed.steps, strict=True):
        assert same(one.values, two.values)
    assert len(pieces(directory)) == 32 + 31


@pytest.mark.parametrize("measure", [sh.ships, sh.generalized_ships])
def test_finished_pieces_are_not_computed_again(demo, harmful, tmp_path, measure, monkeypatch):
    settings = {"given": ["L0H0"], "run": dataclasses.replace(QUIET, run_dir=tmp_path / "run")}
    first = measure(demo, harmful[:8], **settings)
    with monkeypatch.context() as patch:
        patch.setattr("safehead_tl.scan.states.Scan.states", None)
        again = measure(demo, harmful[:8], **settings)
    assert same(first.values, again.values)
    if first.per_prompt is not None:
        assert same(first.per_prompt, again.per_prompt)
    assert again.provenance.forward_passes == pytest.approx(
        first.provenance.forward_passes, rel=0.1
    )


def test_another_run_is_refused_with_what_differs(search, harmful):
    search()
    for changes, said in [
        ({"rank": 2}, "settings.rank was 1 and is now 2"),
        ({"size": 3}, "settings.size was 2 and is now 3"),
        ({"prompts": harmful[:7]}, "prompts.prompt_count was 8 and is now 7"),
        ({"prompts": harmful[1:9]}, "prompts.prompts_hash was"),
        ({"template": "chat"}, 'prompts.template was "paper" and is now "chat"'),
        ({"ablation": "scaling"}, 'ablation.name was "undifferentiated" and is now "scaling"'),
        (
            {"ablation": sh.UndifferentiatedAttention(0.1)},
            "ablation.epsilon was null and is now 0.1",
        ),
        ({"candidates": ["L0H0", "L1H1"]}, "candidates was"),
        ({"model": sh.load_model("demo-base")}, "model.weights_hash was"),
        ({"model": sh.load_model("demo", dtype="bfloat16")}, 'model.dtype was "float32"'),
        (
            {"how": dataclasses.replace(ROWS, shared_prefix=False)},
            "shared_prefix was true and is now false",
        ),
    ]:
        with pytest.raises(sh.SafeheadError, match="holds another run") as refused:
            search(**changes)
        assert said in str(refused.value)


def test_less_memory_is_no_other_run(search, caplog):
    """Who ran out of it must be able to go on; only the last digits may then differ."""
    first = search()
    assert not caplog.records
    again = search(how=sh.Run(max_rows=3, progress=False))
    assert "memory.max_rows was 8 and is now 3" in caplog.text
    assert all(same(a.values, b.values) for a, b in zip(first.steps, again.steps, strict=True))


def test_other_free_memory_is_the_same_run(demo, harmful, tmp_path, monkeypatch, caplog):
    """What is free differs from day to day; the plan is that of the first day."""
    settings = {"run": dataclasses.replace(QUIET, run_dir=tmp_path / "run")}
    expected = sh.ships(demo, harmful[:40], **settings)
    for piece in pieces(tmp_path / "run")[::2]:
        piece.unlink()
    monkeypatch.setattr("safehead_tl.scan.memory.free_bytes", lambda device: 1_000_000)
    again = sh.ships(demo, harmful[:40], **settings)
    assert same(expected.per_prompt, again.per_prompt)
    assert not caplog.records


def test_pieces_of_another_run_are_not_taken(search, tmp_path, harmful, caplog):
    """Copied there, or written by two runs that began in one directory at once."""
    expected = search(size=1)
    search(tmp_path / "other", prompts=harmful[8:16], size=1)
    for piece in pieces(tmp_path / "run"):
        shutil.copy(tmp_path / "other" / "pieces" / piece.name, piece)
    again = search(size=1)
    assert all(same(a.values, b.values) for a, b in zip(expected.steps, again.steps, strict=True))
    assert "it is of another run" in caplog.text


def test_one_changed_weight_is_another_model(search, demo):
    search(size=1)
    model = sh.load_model("demo")
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3, 7] += 0.5
    with pytest.raises(sh.SafeheadError, match="weights_hash was"):
        search(model=model, size=1)


@dataclasses.dataclass(frozen=True)
class Shift(sh.ZeroAblation):
    by: object


def test_settings_of_the_users_ablations_are_compared(search):
    one, two = torch.linspace(0, 1, 2000), torch.linspace(0, 1, 2000)
    two[1000] += 1e-3
    search(ablation=Shift(one), size=1)
    search(ablation=Shift(one.clone()), size=1)
    with pytest.raises(sh.SafeheadError, match=r"ablation\.by\.sha256 was"):
        search(ablation=Shift(two), size=1)
    with pytest.raises(sh.SafeheadError, match=r"ablation\.class was"):
        search(ablation="zero", size=1)
    with pytest.raises(sh.SafeheadError, match="run_dir cannot compare a function"):
        search(ablation=Shift(flip), size=1)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "another's": lambda path: path.write_bytes(pieces(path.parent.parent)[5].read_bytes()),
    "not ours": lambda path: path.write_bytes(b"something else altogether"),
    "another dtype": lambda path: path.write_bytes(
        path.read_bytes().replace(b'"dtype":"F', b'"dtype":"I')
    ),
    "another cost": lambda path: path.write_bytes(
        path.read_bytes().replace(b'token_layers\\": ', b'token_layers\\":1')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_piece_is_computed_again(search, tmp_path, damage, caplog):
    first = search(size=1)
    victim = pieces(tmp_path / "run")[2]
    whole = victim.read_bytes()
    damage(victim)
    assert victim.read_bytes() != whole
    again = search(size=1)
    assert all(same(a.values, b.values) for a, b in zip(first.steps, again.steps, strict=True))
    assert f"{victim} is damaged" in caplog.text
    caplog.clear()
    search(size=1)
    assert not caplog.records


def test_a_full_disk_says_so_and_keeps_what_is_there(search, tmp_path, monkeypatch):
    written, sync = 0, os.fsync

    def full(handle):
        nonlocal written
        written += 1
        if written > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(sh.SafeheadError, match=r"No space left on device\. What was finished"):
            search(size=1)
    assert len(pieces(tmp_path / "run")) == 5
    assert not list((tmp_path / "run" / "pieces").glob(".*"))
    expected = search(tmp_path / "other", size=1)
    assert same(search(size=1).steps[-1].values, expected.steps[-1].values)


def test_directories_that_hold_something_else(search, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(sh.SafeheadError, match="holds other files: give an empty or new directory"):
        search()
    (tmp_path / "run" / "run.json").write_text('{"format": 2, "plan": {}}')
    with pytest.raises(sh.SafeheadError, match="is not the record of a run"):
        search()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "holds a run in format 1, and this version goes on with format 3"),
        ({"digest": None}, "is damaged or was edited"),
        ({"plan": None}, "is damaged or was edited"),
        ({"plan": {"rows": 3}}, "is damaged or was edited"),
        ({"identity": {}}, "is damaged or was edited"),
        ({"environment": {}}, "is damaged or was edited"),
    ],
)
def test_records_that_cannot_be_gone_on_with(search, tmp_path, change, message):
    search(size=1)
    record = tmp_path / "run" / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(sh.SafeheadError, match=message):
        search(size=1)


def test_a_piece_under_another_name_is_another_piece(demo, harmful, tmp_path, caplog):
    """What two judges say of the same texts has the same inputs."""
    told = {"heads": ["L1H3"], "controls": 0, "max_new_tokens": 4}
    told["run"] = dataclasses.replace(QUIET, run_dir=tmp_path / "run")
    first = sh.evaluate(demo, harmful[:3], **told).to_dict()["summaries"]
    *_, judged, refused, _ = pieces(tmp_path / "run")
    shutil.copyfile(refused, judged)
    assert sh.evaluate(demo, harmful[:3], **told).to_dict()["summaries"] == first
    assert f"{judged} is damaged (it is of another run" in caplog.text


def test_another_measure_is_another_run(search, demo, harmful, tmp_path):
    search(size=1)
    kept = dataclasses.replace(QUIET, run_dir=tmp_path / "run")
    with pytest.raises(sh.SafeheadError, match=r"holds another run: .*measure was .sahara."):
        sh.ships(demo, harmful[:8], template="paper", run=kept)
    with pytest.raises(sh.SafeheadError, match="holds another run: "):
        sh.evaluate(demo, harmful[:8], template="paper", run=kept)


def test_hooks_of_the_users_cannot_be_checked(search, demo, caplog):
    demo.add_hook("blocks.1.hook_resid_pre", lambda tensor, hook: tensor * 1.1)
    try:
        search(size=1)
    finally:
        demo.reset_hooks()
    assert "blocks.1.hook_resid_pre: run_dir cannot tell" in caplog.text
    with pytest.raises(sh.SafeheadError, match="hooks was"):
        search(size=1)


def test_no_prompt_is_written(search, tmp_path, harmful):
    search(size=1)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["identity"]["prompts"]["prompt_count"] == 8
    for file in (tmp_path / "run").rglob("*.*"):
        if file.is_file():
            assert not any(prompt.encode() in file.read_bytes() for prompt in harmful[:8])

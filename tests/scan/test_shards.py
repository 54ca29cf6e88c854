"""Shards: processes that share the pieces of a run have the bytes that one process has."""

import json
import multiprocessing
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import ROOT
from safehead_tl.scan import leases, ledger
from safehead_tl.scan.ledger import Ledger

HARMFUL = {"source": "demo/harmful", "limit": 6}
MEASURES = {
    "ships": lambda model, prompts, run: sh.ships(model, prompts, run=run).per_prompt,
    "generalized": lambda model, prompts, run: sh.generalized_ships(model, prompts, run=run).values,
    "screened": lambda model, prompts, run: sh.ships(model, prompts, screen="auto", run=run).values,
    "sahara": lambda model, prompts, run: torch.stack(
        [step.values for step in sh.sahara(model, prompts, size=3, run=run).steps]
    ),
    "integrated": lambda model, prompts, run: (
        sh.integrated_gradients(model, prompts, run=run).values
    ),
    "interchange": lambda model, prompts, run: (
        sh.interchange(
            model, prompts[:4], sh.pair_prompts(model, prompts[:4], "demo/benign"), run=run
        ).necessity.values
    ),
    "knockout": lambda model, prompts, run: (
        sh.knockout(model, prompts, ["L1H3", "L2H6", "L0H1"], run=run).together
    ),
    "evaluate": lambda model, prompts, run: _texts(
        sh.evaluate(model, prompts, heads=["L1H3"], controls=2, max_new_tokens=8, run=run)
    ),
    "concentration": lambda model, prompts, run: _texts(
        sh.concentration(
            model, prompts, {"Ships": ["L1H3", "L2H6"]}, random_orders=2, max_new_tokens=8, run=run
        )
    ),
    "asr_map": lambda model, prompts, run: _texts(
        sh.asr_map(model, prompts, candidates=["L1H3", "L0H0"], max_new_tokens=8, run=run)
    ),
}


SHARED_EVENLY = ("ships", "generalized", "sahara", "interchange")


def _texts(result):
    """All that a result tells but when it was, as numbers."""
    told = {key: value for key, value in result.to_dict().items() if key != "provenance"}
    return torch.tensor(bytearray(json.dumps(told, default=str).encode()))


@pytest.fixture
def harmful_few():
    return sh.load_prompts(**HARMFUL)


@pytest.fixture(scope="module")
def team():
    spawn, alike = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(2, spawn, torch.set_num_threads, (alike,)) as pool:
        yield pool


def one_shard(measure, run):
    """What a measure gives in this process, and the pieces that it computed."""
    computed, true = [], Ledger._computed

    def counted(self, piece):
        computed.append(f"{self.directory.path.name}/{piece.name}")
        return true(self, piece)

    model, prompts = sh.load_model("demo"), sh.load_prompts(**HARMFUL)
    with patch.object(Ledger, "_computed", counted):
        return MEASURES[measure](model, prompts, run), computed


def shards(team, measure, run):
    """What two processes give, and the pieces that each of them computed."""
    both = [team.submit(one_shard, measure, replace(run, on=f"{one}/2")) for one in (1, 2)]
    return zip(*[one.result() for one in both], strict=True)


@pytest.mark.parametrize("measure", MEASURES)
def test_shards_give_the_same_bytes_and_compute_nothing_twice(
    measure, demo, harmful_few, tmp_path, team
):
    run = sh.Run(max_rows=8, progress=False)
    alone = MEASURES[measure](demo, harmful_few, replace(run, run_dir=tmp_path / "alone"))
    found, computed = shards(team, measure, replace(run, run_dir=tmp_path / "shared"))
    for each in found:
        torch.testing.assert_close(each, alone, rtol=0, atol=0, equal_nan=True)
    names = [
        [
            file.relative_to(tmp_path / run)
            for file in sorted(tmp_path.glob(f"{run}/**/*.safetensors"))
        ]
        for run in ("alone", "shared")
    ]
    assert names[0] == names[1]
    assert len(set().union(*computed)) == sum(map(len, computed)) == len(names[0])
    assert not list((tmp_path / "shared").glob("**/*.lease"))
    if measure in SHARED_EVENLY:
        assert min(map(len, computed)) >= 0.25 * len(names[0])


def test_a_dead_shard_is_taken_over(demo, harmful_few, tmp_path, monkeypatch):
    """One that dies leaves its lease, and as much as it had finished."""
    monkeypatch.setattr(leases, "EXPIRY", 0.4)
    run = sh.Run(run_dir=tmp_path / "run", max_rows=8, progress=False)
    alone = sh.ships(demo, harmful_few, run=sh.Run(max_rows=8, progress=False))
    script = (
        f"import os, torch; torch.set_num_threads({torch.get_num_threads()})\n"
        "import safehead_tl as sh; from safehead_tl.scan.ledger import Ledger\n"
        "true, done = Ledger._computed, []\n"
        "def dying(self, piece):\n"
        "    done.append(piece.name)\n"
        "    if len(done) == 4: os._exit(9)\n"
        "    return true(self, piece)\n"
        "Ledger._computed = dying\n"
        f"prompts = sh.load_prompts('demo/harmful', limit=6)\n"
        f"sh.ships(sh.load_model('demo'), prompts, run=sh.Run(run_dir={str(run.run_dir)!r}, "
        "max_rows=8, progress=False, on='1/2'))"
    )
    died = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert died.returncode == 9
    assert len(list((tmp_path / "run" / "pieces").glob("*.safetensors"))) == 3
    assert len(list((tmp_path / "run" / "pieces").glob("*.lease"))) == 1
    seconds = time.monotonic()
    found, computed = one_shard("ships", replace(run, on="2/2"))
    assert torch.equal(found, alone.per_prompt)
    assert len(computed) == len(list((tmp_path / "run" / "pieces").glob("*.safetensors"))) - 3
    assert time.monotonic() - seconds > 0.4


def test_a_shard_that_fails_says_why_and_holds_nothing(demo, harmful_few, tmp_path, monkeypatch):
    run = sh.Run(run_dir=tmp_path / "run", on="1/2", progress=False)

    def full(*args, **kwargs):
        raise sh.SafeheadError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(ledger.RunDirectory, "put", full)
        with pytest.raises(sh.SafeheadError, match="the disk is full"):
            sh.ships(demo, harmful_few, run=run)
    assert not list((tmp_path / "run").glob("**/*.lease"))
    assert sh.ships(demo, harmful_few, run=run).values.isfinite().all()


@pytest.mark.parametrize(
    ("on", "run_dir", "message"),
    [
        ("0/2", "run", "on='0/2' is no shard: write the second of eight as '2/8'"),
        ("3/2", "run", "is no shard"),
        ("2 of 8", "run", "is no shard"),
        ("1/2", None, "on='1/2' shares a run directory: give run_dir as well"),
    ],
)
def test_what_is_no_shard(on, run_dir, message):
    with pytest.raises(sh.SafeheadError, match=re.escape(message)):
        sh.Run(on=on, run_dir=run_dir)


def test_another_run_is_refused_to_a_shard_too(demo, harmful_few, tmp_path):
    run = sh.Run(run_dir=tmp_path / "run", on="1/2", progress=False)
    sh.ships(demo, harmful_few, run=run)
    with pytest.raises(sh.SafeheadError, match=r"holds another run: ablation"):
        sh.ships(demo, harmful_few, ablation="scaling", run=replace(run, on="2/2"))


def test_what_keeps_nothing_is_not_shared(demo, harmful_few, tmp_path):
    run = sh.Run(run_dir=tmp_path / "run", on="1/2")
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="has no pieces to keep"):
        sh.last_states(demo, harmful_few, "L1H3", run=run)


@pytest.mark.parametrize(
    ("told", "shard"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_NTASKS": "1",
            },
            (2, 5),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 4)),
    ],
)
def test_a_launcher_says_which_shard_it_is(told, shard, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert sh.Run(on="auto", run_dir="run").shard == shard


def test_without_a_launcher_it_is_to_be_said():
    with pytest.raises(sh.SafeheadError, match="torchrun or Slurm, which is not here"):
        sh.Run(on="auto", run_dir="run")


def test_a_result_is_beside_its_pieces(demo, harmful_few, tmp_path):
    scores = sh.ships(demo, harmful_few, run=sh.Run(run_dir=tmp_path / "run", progress=False))
    told = json.loads((tmp_path / "run" / "result.json").read_text())
    assert told["heads"] == scores.to_dict()["heads"]
    assert told["written_by"].startswith("safehead_tl")

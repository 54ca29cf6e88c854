"""Shards by the command, and the result of their directory."""

import json

import pytest
from typer.testing import CliRunner

import safehead_tl as sh
from safehead_tl.cli.main import app

SHIPS = ["ships", "demo", "--prompts", "demo/harmful", "--limit", "4"]


def said(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "run"
    said(*SHIPS, "--run-dir", folder, "--shard", "2/2")
    return folder


def test_the_result_of_shards_without_the_model(run_dir, tmp_path):
    out = tmp_path / "out.json"
    assert "L1H3" in said("collect", run_dir, "--json", out, "--top", "1")
    prompts = sh.load_prompts("demo/harmful", limit=4)
    scores = sh.ships(sh.load_model("demo"), prompts, run=sh.Run(progress=False))
    assert json.loads(out.read_text())["heads"] == scores.to_dict()["heads"]


def test_answers_have_no_table(run_dir, tmp_path):
    said(*["evaluate", *SHIPS[1:]], "--max-new-tokens", "4", "--run-dir", tmp_path / "run")
    assert "With --json it is written out" in " ".join(said("collect", tmp_path / "run").split())


def test_a_run_that_is_not_done_is_told(run_dir, tmp_path):
    with pytest.raises(sh.SafeheadError, match="is no directory"):
        said("collect", tmp_path / "none")
    (run_dir / "result.json").rename(tmp_path / "result.json")
    with pytest.raises(sh.SafeheadError, match=r"\d+ finished pieces and no result: 0 are leased"):
        said("collect", run_dir)
    (run_dir / "result.json").write_text("[1]")
    with pytest.raises(sh.SafeheadError, match=r"result\.json is no result"):
        said("collect", run_dir)


def test_what_does_not_go_together(tmp_path):
    with pytest.raises(sh.SafeheadError, match="--ray starts its shards itself"):
        said(*SHIPS, "--ray", "--shard", "1/2", "--run-dir", tmp_path / "run")
    with pytest.raises(sh.SafeheadError, match="on='1/2' shares a run directory"):
        said(*SHIPS, "--shard", "1/2")


def test_with_ray_the_model_is_not_loaded_here(monkeypatch):
    from safehead_tl.cluster import Ray
    from safehead_tl.models import Loading

    given = []

    def call(self, function, told):
        given.append((self, function, told["model"]))
        raise sh.SafeheadError("enough")

    monkeypatch.setattr(Ray, "call", call)
    with pytest.raises(sh.SafeheadError, match="enough"):
        said(*SHIPS, "--ray", "--replicas", "3", "--address", "auto", "--dtype", "bfloat16")
    [(on, function, model)] = given
    assert (on, function) == (Ray(3, "auto"), sh.ships)
    assert isinstance(model, Loading)
    assert (model.source, model.told["dtype"]) == ("demo", "bfloat16")

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

import safehead_tl as sh
from families import QUIET


@pytest.fixture(scope="module")
def scores(demo, harmful):
    return sh.ships(demo, harmful[:5], template="chat", run=QUIET)


@pytest.fixture(scope="module")
def group(demo, harmful):
    return sh.sahara(demo, harmful[:5], size=2, run=QUIET)


def test_saved_and_loaded_is_the_same(scores, group, tmp_path):
    (tmp_path / "deep").mkdir()
    scores.save(tmp_path / "deep" / "s.safetensors")
    again = sh.HeadScores.load(tmp_path / "deep" / "s.safetensors")
    assert torch.equal(again.values, scores.values)
    assert torch.equal(again.per_prompt, scores.per_prompt)
    assert again.to_dict() == json.loads(json.dumps(scores.to_dict()))
    group.save(tmp_path / "g.safetensors")
    whole = sh.HeadGroup.load(tmp_path / "g.safetensors")
    assert whole.heads == group.heads
    assert whole.scores == group.scores
    assert whole.to_dict() == json.loads(json.dumps(group.to_dict()))
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "g.safetensors"}


def test_files_that_hold_something_else(scores, group, tmp_path):
    group.save(tmp_path / "g.safetensors")
    with pytest.raises(sh.SafeheadError, match="it holds HeadGroup"):
        sh.HeadScores.load(tmp_path / "g.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(sh.SafeheadError, match="is no result in format 4"):
        sh.HeadScores.load(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(sh.SafeheadError, match="is no result in format 4"):
        sh.HeadScores.load(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        sh.HeadScores.load(tmp_path / "missing.safetensors")


def test_ranking(scores):
    ranked = scores.ranked()
    assert len(ranked) == 32
    assert [score for _, score in ranked] == sorted(scores.values.flatten().tolist())[::-1]
    assert all(scores.values[head] == score for head, score in ranked)
    assert scores.top(3) == ranked[:3]
    assert isinstance(ranked[0][0], sh.Head)
    assert scores["L1H3"] == scores[1, 3] == scores.values[1, 3]
    assert repr(scores).startswith("<HeadScores: ships in nats, highest: L")
    with pytest.raises(sh.SafeheadError, match=r"top\(-1\)"):
        scores.top(-1)


def test_tables(scores, group):
    table = scores.to_frame()
    assert list(table.columns) == ["layer", "head", "name", "kv_group", "score", "rank"]
    assert table["rank"].tolist() == list(range(1, 33))
    assert table["score"].is_monotonic_decreasing
    long = scores.to_frame(per_prompt=True)
    assert len(long) == 5 * 32
    means = long.groupby(["layer", "head"])["score"].mean()
    for row in table.itertuples():
        assert means[row.layer, row.head] == pytest.approx(row.score)
    steps = group.to_frame()
    assert steps.groupby("step").size().tolist() == [32, 31]
    with pytest.raises(ValueError, match="has none for each"):
        group.steps[0].to_frame(per_prompt=True)


def test_provenance_says_what_was_run(scores, demo, harmful):
    provenance = scores.provenance.to_dict()
    assert provenance["model"]["name"] == "demo"
    assert provenance["model"]["dtype"] == "float32"
    assert provenance["ablation"] == {
        "name": "undifferentiated",
        "label": "undifferentiated attention",
        "epsilon": None,
        "via": "pattern",
    }
    assert provenance["prompts"]["template"] == "chat"
    assert provenance["prompts"]["prompt_count"] == 5
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["seconds"] > 0
    assert not any(prompt in json.dumps(scores.to_dict()) for prompt in harmful)
    other = sh.ships(demo, harmful[1:6], template="chat", candidates=["L0H0"], run=QUIET)
    assert other.provenance.prompts["prompts_hash"] != provenance["prompts"]["prompts_hash"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.values = None


def test_json_is_sorted_by_score(scores):
    heads = scores.to_dict()["heads"]
    assert [set(head) for head in heads] == [{"layer", "head", "score"}] * 32
    assert [head["score"] for head in heads] == sorted(h["score"] for h in heads)[::-1]


def test_heatmap_hover_names_head_score_and_rank(scores, tmp_path):
    figure = scores.heatmap(marked=["L1H3", "L2H6"], marked_as="planted")
    (best, score), *_ = scores.top(1)
    cell = figure.data[0].text[best.layer][best.head]
    assert cell == f"<b>{best}</b><br>{score:.4g} (mean KL, nats)<br>rank 1 of 32"
    assert len(figure.data[0].z) == 4
    assert len(figure.layout.shapes) == 3
    assert list(figure.data[1].x) == [3, 6]
    assert list(figure.data[1].y) == [1, 2]
    assert "Ships under undifferentiated attention" in figure.layout.title.text
    assert "cross: planted (L1H3, L2H6)" in figure.layout.title.text
    assert figure.layout.yaxis.autorange == "reversed"
    with pytest.raises(sh.SafeheadError, match="L7H7 does not exist"):
        scores.heatmap(marked="L7H7")


def test_a_newer_format_is_named(scores, tmp_path, monkeypatch):
    monkeypatch.setattr("safehead_tl.results.files.FORMAT", 5)
    scores.save(tmp_path / "s.safetensors")
    monkeypatch.undo()
    with pytest.raises(sh.SafeheadError, match="format 5, and this version"):
        sh.HeadScores.load(tmp_path / "s.safetensors")


def test_hooks_on_the_model_are_in_the_provenance(demo, harmful):
    with sh.ablated(demo, "L1H3", "zero"):
        scores = sh.ships(demo, harmful[:2], candidates=["L0H0"], run=QUIET)
    assert scores.provenance.model["hooks"] == ["blocks.1.attn.hook_z"]


def test_heatmap_colours_start_at_zero(demo, harmful):
    scores = sh.ships(demo, harmful[:2], candidates=["L1H3", "L2H6"], run=QUIET)
    trace = scores.heatmap().data[0]
    assert trace.zmin == 0
    assert trace.zmax == scores.top(1)[0][1]


def test_heatmap_of_a_partial_scan_says_what_was_not_scored(demo, harmful):
    partial = sh.ships(demo, harmful[:2], candidates=["L0H1"], given=["L1H3"], run=QUIET)
    figure = partial.heatmap()
    assert figure.data[0].text[0][0] == "<b>L0H0</b><br>not scored"
    assert "with L1H3 ablated" in figure.layout.title.text


def test_kv_groups_are_named(checkpoint, prompts):
    """Four query heads, two key/value heads."""
    model = sh.load_model(checkpoint("llama-grouped"))
    scores = sh.ships(model, prompts, run=QUIET)
    assert scores.heads_per_kv_group == 2
    table = scores.to_frame()
    for head, expected in enumerate([0, 0, 1, 1]):
        assert set(table[table["head"] == head]["kv_group"]) == {expected}
    hover = scores.heatmap().data[0].text
    assert hover[1][3].endswith("KV group 1: heads 2 to 3")


def test_a_list_of_scores_is_their_ranking(demo):
    scores = sh.ships(demo, ["bend"], run=QUIET)
    assert list(scores) == scores.ranked()
    assert dict(scores)[sh.Head(1, 3)] == scores["L1H3"]

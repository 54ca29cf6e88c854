"""Every head ablated alone, against `evaluate` of each."""

import dataclasses
import json

import pytest
import scipy.stats
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET
from safehead_tl.generation import batched

TOLD = {"template": "chat", "max_new_tokens": 12, "run": QUIET}
LENIENT = {"judge": sh.KeywordJudge(min_length=0)}


@pytest.fixture(scope="module")
def requests():
    return sh.load_prompts("demo/harmful", split="test")[:6]


@pytest.fixture(scope="module")
def found(demo, requests):
    return sh.asr_map(demo, requests, **LENIENT, **TOLD)


def test_shares_are_those_of_each_head_evaluated_by_itself(demo, requests, found):
    for head in ("L1H3", "L2H6", "L3H7"):
        alone = sh.evaluate(demo, requests, heads=head, controls=0, **LENIENT, **TOLD)
        assert found.rate(head) == alone.asr
        assert found.scores()[head] == pytest.approx(alone.asr.share)
        assert found.scores("coherent_asr")[head] == pytest.approx(alone.coherent_asr.share)
        assert found.scores("refusal")[head] == pytest.approx(alone.refusal_rate.share)
        number = found.heads.index(sh.Head.parse(head))
        assert found.responses.texts[1 + number] == alone.harmful.texts[1]
    assert found.unablated_asr == alone.unablated_asr


def test_the_planted_heads_stand_out(found):
    (first, high), (second, low), (_, third) = found.scores().top(3)
    assert {str(first), str(second)} == {"L1H3", "L2H6"}
    assert high >= low > third == found.unablated_asr.share == 0


def test_ships_comes_with_the_answers(demo, requests, found):
    scores = sh.ships(demo, requests, template="chat", run=QUIET)
    assert torch.allclose(found.ships.per_prompt, scores.per_prompt.double(), atol=1e-5)
    expected = scipy.stats.spearmanr(found.scores().values.flatten(), scores.values.flatten())
    assert found.correlation(scores) == pytest.approx(expected.statistic)
    assert found.correlation() == pytest.approx(expected.statistic, abs=0.05)
    figure = found.beside(scores, marked=["L1H3"])
    text = " ".join(note.text for note in figure.layout.annotations)
    assert f"rank correlation {expected.statistic:.2f}" in text
    assert "unablated: 0.00" in text
    assert sum(trace.type == "heatmap" for trace in figure.data) == 2


def test_intervals_are_in_the_hover_and_the_table(found):
    low, high = found.rate("L1H3").interval
    assert f"95 %: {low:.2f} to {high:.2f}" in found.heatmap().data[0].text[1][3]
    table = found.to_frame().set_index("name")
    assert (table.loc["L1H3", "low"], table.loc["L1H3", "high"]) == (low, high)
    count = round(6 * found.rate("L1H3").share)
    assert table.loc["L1H3", "p_unablated"] == pytest.approx(2 / 2**count)
    assert table.loc["L1H3", "holm_unablated"] == pytest.approx(min(1, 32 * 2 / 2**count))
    assert len(found.answers()) == 33 * 6


def test_a_map_is_kept_whole(found, tmp_path):
    found.save(tmp_path / "m.safetensors")
    again = sh.AsrMap.load(tmp_path / "m.safetensors")
    assert again.to_dict() == found.to_dict()
    assert again.answers().equals(found.answers())
    assert found.responses.prompts[0] not in json.dumps(found.to_dict())


def test_a_stopped_map_goes_on(demo, requests, tmp_path, monkeypatch):
    candidates = ["L1H3", "L2H6", "L0H0", "L3H1"]
    whole = sh.asr_map(demo, requests, candidates=candidates, **LENIENT, **TOLD)
    kept = dataclasses.replace(QUIET, run_dir=tmp_path / "run", max_rows=7)
    told = {**TOLD, **LENIENT, "candidates": candidates, "run": kept}
    generate, ran = batched.generate_rows, []

    def limited(model, batch, rows, *given):
        ran.append(len(rows))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return generate(model, batch, rows, *given)

    monkeypatch.setattr(batched, "generate_rows", limited)
    with pytest.raises(KeyboardInterrupt):
        sh.asr_map(demo, requests, **told)
    found = sh.asr_map(demo, requests, **told)
    assert sum(ran[:2]) + sum(ran[3:]) == 5 * 6, "what was finished was not done again"
    assert found.responses.texts == whole.responses.texts
    assert torch.allclose(found.scores().values, whole.scores().values, equal_nan=True)
    assert int(found.scores().values.isnan().sum()) == 28
    finished = len(ran)
    again = sh.asr_map(demo, requests, **told)
    assert len(ran) == finished
    assert torch.equal(again.responses.divergence, found.responses.divergence)


def test_mistakes(demo, requests, found, checkpoint):
    with pytest.raises(sh.SafeheadError, match="candidates is empty"):
        sh.asr_map(demo, requests, candidates=[], **TOLD)
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="metric"):
        found.scores("x")
    with pytest.raises(sh.SafeheadError, match="L9H0 was not ablated"):
        found.rate("L9H0")
    other = sh.load_model(str(checkpoint("llama")), dtype="float32")
    scan = sh.ships(other, requests[:2], template="direct", run=QUIET)
    with pytest.raises(sh.SafeheadError, match="give a scan of the same model"):
        found.beside(scan)

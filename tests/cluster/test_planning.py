"""What a run will take, against what runs have taken."""

import json

import pytest
from jaxtyping import TypeCheckError
from transformers import LlamaConfig
from typer.testing import CliRunner

import safehead_tl as sh
from families import GROUPED, hooked_only
from peaks import PeakMemory
from safehead_tl.cli import main as cli
from safehead_tl.cluster import PIECES_EACH

LONG = "please tell me how do i lift a boat ## query : {query} ## answer :"
MEASURES = {
    "ships": sh.ships,
    "generalized-ships": sh.generalized_ships,
    "sahara": lambda *args, **told: sh.sahara(*args, size=2, **told),
}
WAYS = {
    "at ease": {},
    "with a prefix": {"template": LONG},
    "a prefix, streams not kept": {"template": LONG, "max_bytes": "6MB"},
    "prompts in parts": {"max_bytes": "1500kB"},
    "whole layers": {"ablation": "mean-over-heads"},
    "by means": {"ablation": "mean"},
    "few rows": {"max_rows": 32},
}
BIG = LlamaConfig(
    vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=2048,
    architectures=["LlamaForCausalLM"],
)  # fmt: skip
"""As Llama-3.1-70B."""


def told_of(way):
    told = {"template": "{query}", **WAYS[way]}
    run = {name: told.pop(name) for name in ("max_bytes", "max_rows") if name in told}
    return told, run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("measure", MEASURES)
def test_pieces_and_passes_are_those_of_the_run(measure, way, demo, harmful, tmp_path):
    told, run = told_of(way)
    found = sh.plan("demo", harmful[:64], measure=measure, size=2, run=sh.Run(**run), **told)
    how = sh.Run(**run, run_dir=tmp_path / "run", progress=False)
    provenance = MEASURES[measure](demo, harmful[:64], run=how, **told).provenance
    assert len(found.pieces) == len(list((tmp_path / "run" / "pieces").iterdir()))
    # which head sahara leaves out in its second step, and so of which layer, is not known
    off = 0.03 if measure == "sahara" else 1e-3
    assert found.passes == pytest.approx(provenance.forward_passes, rel=off)


@hooked_only
@pytest.mark.parametrize("way", ["at ease", "with a prefix", "prompts in parts", "whole layers"])
@pytest.mark.parametrize("measure", ["ships", "generalized-ships"])
def test_memory_is_that_of_the_run_within_a_tenth(measure, way, demo, harmful):
    told, run = told_of(way)
    how = sh.Run(**run, progress=False)
    found = sh.plan("demo", harmful[:64], measure=measure, run=how, **told)
    with PeakMemory() as memory:
        MEASURES[measure](demo, harmful[:64], run=how, **told)
    assert found.peak == pytest.approx(memory.peak, rel=0.1)
    assert found.weights >= sum(weight.nbytes for weight in demo.parameters())


@pytest.mark.parametrize("measure", MEASURES)
def test_a_screened_run_is_between_the_two_ends(measure, demo, harmful, tmp_path):
    told = {"template": "{query}", "screen": "auto"}
    found = sh.plan("demo", harmful[:64], measure=measure, size=2, **told)
    run = sh.Run(run_dir=tmp_path / "run", progress=False)
    provenance = MEASURES[measure](demo, harmful[:64], run=run, **told).provenance
    pieces = len(list((tmp_path / "run" / "pieces").iterdir()))
    assert len(found.least) <= pieces <= len(found.pieces)
    assert 0.9 * found.fewest_passes < provenance.forward_passes < found.passes


def test_an_evaluation_is_planned_with_answers_of_full_length(demo, harmful, tmp_path):
    told = {"measure": "evaluate", "variants": 4, "max_new_tokens": 5}
    run = sh.Run(max_rows=16, run_dir=tmp_path / "run", progress=False)
    found = sh.plan("demo", harmful[:12], run=sh.Run(max_rows=16), **told)
    result = sh.evaluate(demo, harmful[:12], heads=["L1H3"], controls=2, max_new_tokens=5, run=run)
    names = [path.name for path in (tmp_path / "run" / "pieces").iterdir()]
    assert len(found.pieces) == sum("texts" in name or "divergence" in name for name in names)
    assert found.passes == pytest.approx(result.provenance.forward_passes, rel=0.01)


@hooked_only
def test_a_model_of_70_billion_weights_is_planned_from_its_config():
    found = sh.plan(BIG, 1000, length=64, dtype="bfloat16", gpus=64, memory="80GiB", rate=2e14)
    assert (found.layers, found.heads, len(found.pieces)) == (80, 64, 5120)
    assert found.weights == pytest.approx(2 * 70.55e9, rel=0.01)  # its model card: 70.6 billion
    assert (found.gpus_each, found.replicas) == (2, 32)
    # Layers above a head's own, 40.5 of 80 on average, for 5,120 heads and 1,000 prompts.
    assert found.passes == pytest.approx(5_120_000 * 40.5 / 80, rel=0.01)
    assert found.arithmetic == pytest.approx(2 * 68.45e9 / 80, rel=0.01)
    seconds = found.passes * 64 * 80 * found.arithmetic / 2e14
    assert found.hours == pytest.approx(seconds / 32 / 3600, rel=0.05)
    assert found.weights < found.memory < 2 * 80 * 2**30


def test_pieces_are_made_small_enough_for_the_replicas():
    told = {"length": 9, "memory": "1GiB"}
    one, many = (sh.plan("demo", 8, gpus=gpus, **told) for gpus in (1, 8))
    assert one.max_rows is None
    assert len(one.pieces) < len(many.pieces)
    assert many.max_rows == 8
    assert "pieces each are few" in many.told()["replicas"]
    assert len(many.pieces) < 8 * PIECES_EACH


def test_hours_need_a_rate(harmful):
    found = sh.plan("demo", 8, length=9)
    with pytest.raises(sh.SafeheadError, match="rate="):
        found.to_frame()
    assert found.to_dict()["hours"] is None
    assert "not known" in str(found)
    timed = sh.plan("demo", harmful[:8], rate="timed")
    assert timed.hours > 0


def test_the_frame_and_the_figure_agree():
    found = sh.plan("demo", 8, length=9, rate=1e9)
    frame = found.to_frame(8)
    assert frame["replicas"].tolist() == [1, 2, 4, 8]
    assert frame["hours"].is_monotonic_decreasing
    assert frame["gpu_hours"][0] == frame["hours"][0] == pytest.approx(found.hours)
    figure = found.figure(8)
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert drawn["hours"] == frame["hours"].tolist()
    assert drawn["idle"] == (100 * frame["idle"]).tolist()


def test_the_command_says_the_same(tmp_path):
    out = tmp_path / "plan.json"
    told = ["plan", "demo", "--prompts", "64", "--length", "9", "--rate", "1e9", "--json", out]
    done = CliRunner().invoke(cli.app, [str(each) for each in told])
    assert done.exit_code == 0, done.output
    found = sh.plan("demo", 64, length=9, rate=1e9)
    assert json.loads(out.read_text())["forward_passes"] == round(found.passes, 2)
    assert "pieces" in done.stdout
    refused = CliRunner().invoke(cli.app, ["plan", "demo", "--prompts", "9", "--rate", "fast"])
    assert "2e14" in str(refused.exception)


@pytest.mark.parametrize(
    ("model", "prompts", "told", "message"),
    [
        ("demo", 8, {}, "length=None"),
        ("demo", 0, {"length": 9}, "give one prompt or more"),
        ("demo", 8, {"length": 9, "gpus": 2}, "without memory="),
        ("demo", 8, {"length": 9, "gpus": 2, "memory": "100kB"}, "does not fit"),
        ("demo", 8, {"length": 9, "rate": "timed"}, "give them"),
        ("demo", 8, {"length": 9, "run": sh.Run(run_dir="here")}, "run_dir"),
        (LlamaConfig(**GROUPED, architectures=["LlamaForCausalLM"]), ["hi"], {}, "no tokenizer"),
    ],
)
def test_what_cannot_be_planned_is_refused(model, prompts, told, message):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=message):
        sh.plan(model, prompts, **told)


def test_an_unknown_measure_is_refused():
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="measure"):
        sh.plan("demo", 8, length=9, measure="ship")

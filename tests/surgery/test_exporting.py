import errno
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import independent
import safehead_tl as sh
from families import FAMILIES, GOLDEN, make_checkpoint
from safehead_tl.models.anatomy import dissect
from safehead_tl.models.conversion import load_original
from safehead_tl.surgery.weights import ablate_weights

GROUPS = ["L0H2", "L0H3", "L2H0", "L2H1"]
NORMALISED = ("qwen3", "gemma3_text", "olmo2")
HEADS = tuple(map(sh.Head, (0, 0, 2), (2, 3, 1)))


def logits(path, kind=None, heads=()):
    tokens = torch.randint(82, (2, 16), generator=torch.Generator().manual_seed(3))
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
    return independent.logits(model, tokens, torch.ones_like(tokens), kind, heads)


def parameters(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    return dict(model.named_parameters())


@pytest.mark.parametrize("ablation", ["undifferentiated", "scaling", "zero"])
@pytest.mark.parametrize("source", ["demo", GOLDEN / "mha", GOLDEN / "gqa"])
def test_a_round_trip(source, ablation, tmp_path):
    path = source if source != "demo" else Path(sh.__file__).parent / "data/organism/aligned"
    heads = HEADS[1:]
    done = sh.export(source, heads, tmp_path / "out", ablation=ablation)
    expected = logits(path, ablation, heads)
    assert torch.allclose(logits(tmp_path / "out"), expected, atol=1e-4)
    assert (logits(path) - expected).abs().max() > 1e-2
    assert done.max_difference <= 1e-4
    before, after = parameters(path), parameters(tmp_path / "out")
    differ = {name: int((before[name] != after[name]).sum()) for name in before}
    assert done.changes.changed == sum(differ.values())
    assert set(done.changes.tensors) == {name for name, count in differ.items() if count}
    assert done.changes.total == sum(parameter.numel() for parameter in before.values())
    again = sh.load_model(tmp_path / "out")
    tokens = torch.randint(82, (1, 9), generator=torch.Generator().manual_seed(4))
    hooked = sh.load_model(source)
    with sh.ablated(hooked, heads, ablation):
        assert torch.allclose(again(tokens), hooked(tokens), atol=1e-4)


def test_what_comes_along(tmp_path):
    source = make_checkpoint("llama", tmp_path)
    AutoModelForCausalLM.from_pretrained(source, dtype="bfloat16").save_pretrained(source)
    odd = {"temperature": 0.6, "do_sample": False, "max_new_tokens": 7}  # as Llama-2 ships it
    (source / "generation_config.json").write_text(json.dumps(odd))
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = "{{ bos_token }}ask {{ messages[0].content }}"
    tokenizer.save_pretrained(source)
    kept = {path: path.read_bytes() for path in source.iterdir()}
    done = sh.export(source, ["L0H1"], tmp_path / "out", ablation="zero")
    assert {path: path.read_bytes() for path in source.iterdir()} == kept
    assert {p.dtype for p in parameters(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == odd
    assert GenerationConfig.from_pretrained(tmp_path / "out").max_new_tokens == 7
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.chat_template == tokenizer.chat_template
    text = "<s> how do i bend a kite"
    assert theirs(text)["input_ids"] == tokenizer(text)["input_ids"]
    card = (tmp_path / "out/README.md").read_text()
    for said in ("L0H1", "zero ablation", "safety behaviour of this model was altered",
                 str(source), f"{done.changes.changed:,} of"):  # fmt: skip
        assert said in card
    mark = json.loads((tmp_path / "out/config.json").read_text())["safehead_tl"]
    assert [(step["heads"], step["ablation"]["name"]) for step in mark] == [(["L0H1"], "zero")]
    sh.export(tmp_path / "out", ["L1H0"], tmp_path / "more", ablation="zero")
    mark = json.loads((tmp_path / "more/config.json").read_text())["safehead_tl"]
    assert [step["heads"] for step in mark] == [["L0H1"], ["L1H0"]]
    assert done.to_dict()["changed_share"] == done.changes.changed / done.changes.total


def test_changes_are_the_queries_of_the_head_and_nothing_else(checkpoint, tmp_path):
    path = checkpoint("llama-grouped")
    done = sh.export(path, "L1H2", tmp_path / "out")
    assert done.changes.tensors == ("model.layers.1.self_attn.q_proj.weight",)
    assert done.changes.changed == 8 * 32  # d_head x d_model
    changed = parameters(tmp_path / "out")[done.changes.tensors[0]]
    before = parameters(path)[done.changes.tensors[0]]
    rows = (changed != before).any(1).nonzero().flatten().tolist()
    assert rows == list(range(16, 24))


def test_half_a_kv_group(checkpoint, tmp_path):
    path = checkpoint("llama-grouped")
    for ablation, what in ((sh.ScalingContribution(0.5, via="v"), "values"),
                           (sh.UndifferentiatedAttention(1e-5, via="k"), "keys"),
                           (sh.MeanOverHeads("k"), "keys")):  # fmt: skip
        with pytest.raises(sh.SafeheadError, match=rf"{what} .* would ablate L1H3 too"):
            sh.export(path, ["L1H2", "L2H0", "L2H1"], tmp_path / "half", ablation=ablation)
        sh.export(path, ["L1H2", "L1H3"], tmp_path / "out", ablation=ablation, overwrite=True)


@pytest.mark.parametrize(
    ("name", "ablation", "why"),
    [
        ("bloom-alibi", "undifferentiated", "ALiBi"),
        ("olmo2-norm-over-heads", "undifferentiated", "normalised over all heads"),
        ("qwen3-qk-norm", sh.UndifferentiatedAttention(1e-3), "undoes their scaling"),
        ("gemma2-soft-caps-windows", sh.UndifferentiatedAttention(1e-3), "capped"),
        ("llama", "mean", "no bias that could hold the mean"),
    ],
)
def test_what_weights_cannot_express(checkpoint, tmp_path, name, ablation, why):
    if ablation == "mean":
        ablation = sh.MeanAblation(reference=["bend a kite"], template="direct")
    with pytest.raises(sh.SafeheadError, match=why):
        sh.export(checkpoint(name), ["L0H0"], tmp_path / "out", ablation=ablation)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_of_keys_values_and_means_in_every_family(checkpoint, tmp_path, name):
    """Against the hooks, which have their own tests."""
    for ablation in (sh.UndifferentiatedAttention(0.1, "q"), sh.UndifferentiatedAttention(0.1, "k"),
                     sh.ScalingContribution(0.5, "v"), sh.MeanOverHeads("q"),
                     sh.MeanOverHeads("k"), sh.MeanOverHeads("v")):  # fmt: skip
        told = {"ablation": ablation, "overwrite": True}
        if FAMILIES[name]().model_type in NORMALISED and "Undiff" in type(ablation).__name__:
            with pytest.raises(sh.SafeheadError, match="normalised"):
                sh.export(checkpoint(name), GROUPS, tmp_path / "out", **told)
        else:
            export = sh.export(checkpoint(name), GROUPS, tmp_path / "out", **told)
            assert export.max_difference <= 1e-4


def test_a_wrong_edit_is_found_out_and_leaves_nothing(monkeypatch, tmp_path):
    def forgets_one(model, anatomy, heads, ablation):
        ablate_weights(model, anatomy, heads[:-1], ablation)

    monkeypatch.setattr("safehead_tl.surgery.exporting.ablate_weights", forgets_one)
    with pytest.raises(sh.SafeheadError, match=r"logits differ by up to .*Nothing was written"):
        sh.export("demo", ["L1H3", "L2H6"], tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_prompts_and_mean_ablation(checkpoint, prompts, tmp_path):
    path = checkpoint("gpt2")
    done = sh.export(
        path, ["L1H2"], tmp_path / "out", ablation="mean", prompts=prompts, template="chat"
    )
    assert done.provenance.prompts["prompt_count"] == 3
    model = sh.load_model(path)
    mean = sh.MeanAblation(reference=prompts, template="chat")
    tokens = torch.randint(82, (1, 9), generator=torch.Generator().manual_seed(4))
    with sh.ablated(model, "L1H2", mean):
        expected = model(tokens)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(again(tokens).logits, expected, atol=1e-4)


def test_places_that_are_not_written_to(checkpoint, tmp_path, monkeypatch):
    source = make_checkpoint("llama", tmp_path / "models")
    with pytest.raises(sh.SafeheadError, match="never overwritten"):
        sh.export(source, "L0H0", source, overwrite=True)
    with pytest.raises(sh.SafeheadError, match="never overwritten"):
        sh.export(source, "L0H0", tmp_path / "models", overwrite=True)
    alias = tmp_path / "alias"
    alias.symlink_to(source)
    with pytest.raises(sh.SafeheadError, match="never overwritten"):
        sh.export(source, "L0H0", alias, overwrite=True)
    sh.export(source, "L0H0", tmp_path / "out")
    with pytest.raises(sh.SafeheadError, match="not empty"):
        sh.export(source, "L0H1", tmp_path / "out")
    with pytest.raises(sh.SafeheadError, match="no heads"):
        sh.export(source, [], tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(sh.SafeheadError, match="is a file"):
        sh.export(source, "L0H0", tmp_path / "file")
    theirs = make_checkpoint("llama", tmp_path / "theirs")
    with pytest.raises(sh.SafeheadError, match="which safehead_tl did not write"):
        sh.export(source, "L0H0", theirs, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(sh.SafeheadError, match=r"holds thesis\.txt, which .* did not write"):
        sh.export(source, "L0H0", tmp_path / "mine", overwrite=True)
    monkeypatch.chdir(tmp_path / "mine")
    for place in (".", "..", tmp_path):
        with pytest.raises(sh.SafeheadError, match=r"inside it|never overwritten"):
            sh.export(source, "L0H0", place, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert not list(tmp_path.glob(".*"))


def test_an_old_checkpoint_stays_until_the_new_one_is_there(checkpoint, tmp_path, monkeypatch):
    out, link = tmp_path / "out", tmp_path / "link"
    sh.export(checkpoint("llama"), "L0H0", out)
    before = (out / "README.md").read_text()

    def interrupted(folder, target):
        assert (folder / "README.md").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("safehead_tl.writing._put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sh.export(checkpoint("llama"), "L1H1", out, overwrite=True)
    monkeypatch.undo()
    assert (out / "README.md").read_text() == before
    link.symlink_to(out)
    sh.export(checkpoint("llama"), "L1H1", link, overwrite=True)
    assert "L1H1" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("transformers.PreTrainedModel.save_pretrained", SafetensorError("{} (os error 28)")),
        ("transformers.PreTrainedTokenizerBase.save_pretrained", Exception("{} (os error 28)")),
        ("pathlib.Path.write_text", OSError(errno.ENOSPC, "{}")),
    ],
)
def test_a_full_disk_is_told_with_the_directory(checkpoint, tmp_path, monkeypatch, what, error):
    """Rust has no errno: it says it in words."""

    def full(*args, **told):
        raise error

    monkeypatch.setattr(what, full)
    with pytest.raises(sh.SafeheadError, match=r"out cannot be written: \{\}"):
        sh.export(checkpoint("llama"), "L0H0", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_large_logits_and_ablations_too_small_to_see(tmp_path):
    source = make_checkpoint("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(source)
    model.lm_head.weight.data *= 100
    model.save_pretrained(source)
    done = sh.export(source, "L0H0", tmp_path / "out")
    assert done.max_difference > 1e-4
    told = {"ablation": sh.ScalingContribution(1 - 1e-6), "overwrite": True}
    with pytest.raises(sh.SafeheadError, match="too little to tell from rounding"):
        sh.export(source, "L0H0", tmp_path / "out", **told)


def test_a_bias_after_a_norm_of_queries_is_no_zero(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 82}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            transformers.PhiConfig(**sizes, intermediate_size=48, qk_layernorm=True)
        )
    with pytest.raises(sh.SafeheadError, match="bias after they are normalised"):
        ablate_weights(model, dissect(model), [sh.Head(0, 1)], sh.UndifferentiatedAttention())


def test_an_ablation_of_ones_own_is_refused(checkpoint, tmp_path):
    class Mine(sh.ZeroAblation):
        name = "mine"

    class Other(sh.Ablation):
        name = "other"
        label = "other"

        def hooks(self, model, layer, heads):
            return sh.ZeroAblation().hooks(model, layer, heads)

        def describe(self):
            return {"name": self.name}

    sh.export(checkpoint("llama"), "L0H0", tmp_path / "a", ablation=Mine())
    with pytest.raises(sh.SafeheadError, match="other: it is not known how to write"):
        sh.export(checkpoint("llama"), "L0H0", tmp_path / "b", ablation=Other())


def test_layouts_that_are_not_known():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 82}
    codegen = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 82, "rotary_dim": 4}
    for config in (transformers.FalconConfig(**sizes), transformers.CodeGenConfig(**codegen)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(sh.SafeheadError, match="it is not known how heads are laid out in"):
            dissect(model)


def test_weights_of_half_a_checkpoint_are_not_made_up(checkpoint, tmp_path):
    model = load_original(checkpoint("llama"), "auto")
    state = model.state_dict()
    del state["model.layers.0.self_attn.q_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    AutoTokenizer.from_pretrained(checkpoint("llama")).save_pretrained(tmp_path)
    with pytest.raises(sh.SafeheadError, match="lacks 1 of the model's weights"):
        sh.export(tmp_path, "L0H0", tmp_path.parent / "out")

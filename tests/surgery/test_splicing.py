import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import safehead_tl as sh
from families import BACKENDS, FAMILIES, make_checkpoint
from safehead_tl.models import all_logits
from safehead_tl.models.anatomy import dissect
from safehead_tl.organism import measure_behaviour
from safehead_tl.prompts import encode
from safehead_tl.surgery import reverted, splice_check, splicing
from safehead_tl.surgery.splice_plan import take
from safehead_tl.surgery.splicing import splice
from spliced import second_splice

DATA = Path(sh.__file__).parent / "data/organism"


HEADS = (sh.Head(0, 1), sh.Head(0, 2), sh.Head(2, 0), sh.Head(2, 1))
"""With two heads a KV group: parts of two groups in layer 0, and a whole one in layer 2."""


def state(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict()


def has(name):
    extra = {"qwen3-qk-norm": ["norm"], "gemma3-windows": ["norm"], "gpt-oss-sinks": ["sinks"],
             "olmo2-norm-over-heads": ["norm"]}  # fmt: skip
    return ["q", "k", "v", "o", *extra.get(name, [])]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_in_every_family(checkpoint, donor, tmp_path, name):
    """Against a splice of state dicts, and the logits of a model that is given that one."""
    target, theirs = state(checkpoint(name)), state(donor(name))
    n_kv = getattr(FAMILIES[name](), "num_key_value_heads", None) or 4
    model = AutoModelForCausalLM.from_pretrained(checkpoint(name)).eval()
    plans = [(None, None, None), (["q"], None, None), (["k", "o"], [2], None),
             (has(name)[-1:], [0, 1], None), (["v"], [1], None), (None, None, HEADS),
             (["v", "o"], None, HEADS[2:])]  # fmt: skip
    for number, (parts, layers, heads) in enumerate(plans):
        out = tmp_path / str(number)
        done = splice(checkpoint(name), donor(name), out, parts=parts, layers=layers, heads=heads)
        if heads is not None:
            layers = [2] if parts else [0, 2]
            parts = parts or [part for part in has(name) if part != "norm"]
        expected = second_splice(target, theirs, parts or has(name), layers or [0, 1, 2], n_kv,
                                 heads)  # fmt: skip
        assert done.heads == heads
        assert done.kept == (heads[:2] if heads == HEADS and n_kv == 2 else ())
        again = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
        found = again.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert list(done.parts) == (parts or has(name))
        assert list(done.layers) == (layers or [0, 1, 2])
        differ = {key for key in expected if not torch.equal(expected[key], target[key])}
        assert set(done.changes.tensors) == differ == {each.name for each in done.taken}
        count = sum(int((expected[key] != target[key]).sum()) for key in differ)
        assert done.changes.changed == count == sum(int(each.mask.sum()) for each in done.taken)
        assert done.max_difference <= 1e-4
        assert done.moved_by > 1e-3
        model.load_state_dict(expected)
        tokens = torch.randint(82, (2, 16), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_slices_are_named(checkpoint, donor, tmp_path):
    done = splice(checkpoint("pythia-parallel"), donor("pythia-parallel"), tmp_path / "a",
                  parts="k", layers=1)  # fmt: skip
    bias, weight = done.taken
    assert weight.name == "gpt_neox.layers.1.attention.query_key_value.weight"
    assert (weight.dim, weight.ranges) == (0, ((8, 16), (32, 40), (56, 64), (80, 88)))
    assert bias.ranges == weight.ranges
    assert json.loads(json.dumps(done.to_dict()))["taken"][0]["ranges"][0] == [8, 16]
    done = splice(checkpoint("gpt2"), donor("gpt2"), tmp_path / "b", parts=["v", "k"], layers=[0])
    assert done.parts == ("k", "v")
    assert [(each.dim, each.ranges) for each in done.taken] == [(0, ((32, 96),)), (1, ((32, 96),))]
    done = splice(checkpoint("gpt2"), donor("gpt2"), tmp_path / "c", parts="qkv"[:1], layers=0)
    assert "(only the slices of these parts)" in (tmp_path / "c/README.md").read_text()


def test_what_comes_along(donor, tmp_path):
    source = make_checkpoint("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="bfloat16")
    model.save_pretrained(source)
    odd = {"temperature": 0.6, "do_sample": False, "max_new_tokens": 7}
    (source / "generation_config.json").write_text(json.dumps(odd))
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = "{{ bos_token }}ask {{ messages[0].content }}"
    tokenizer.save_pretrained(source)
    kept = {path: path.read_bytes() for path in (*source.iterdir(), *donor("llama").iterdir())}
    done = splice(source, donor("llama"), tmp_path / "out", layers=[1])
    assert {path: path.read_bytes() for path in kept} == kept
    found, theirs = state(tmp_path / "out"), state(donor("llama"))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}  # the donor's: float32
    query = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(found[query], theirs[query].bfloat16())
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == odd
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    card = (tmp_path / "out/README.md").read_text()
    for said in ("Attention (q, k, v, o) of", str(donor("llama")), str(source), "layers 1 ",
                 "safety behaviour of this model was altered", "`model.layers.*.self_attn.q_proj",
                 f"{done.changes.changed:,} of"):  # fmt: skip
        assert said in card
    splice(tmp_path / "out", donor("llama"), tmp_path / "more", parts="v", layers=2)
    first, second = json.loads((tmp_path / "more/config.json").read_text())["safehead_tl"]
    assert (first["what"], first["parts"], first["layers"]) == ("splice", ["q", "k", "v", "o"], [1])
    assert (second["source"], second["parts"]) == (str(tmp_path / "out"), ["v"])
    splice(source, tmp_path / "more", tmp_path / "third")
    (only,) = json.loads((tmp_path / "third/config.json").read_text())["safehead_tl"]
    assert only["donor_history"] == [first, second]


def test_attention_of_the_base_in_the_aligned_organism_and_the_reverse(tmp_path):
    """The organism's refusals were trained into attention: so they go where it goes."""
    splice("demo", "demo-base", tmp_path / "a")
    assert all(map(torch.equal, state(tmp_path / "a").values(), state(DATA / "base").values()))
    splice("demo-base", "demo", tmp_path / "b", layers=[1, 2])
    assert all(map(torch.equal, state(tmp_path / "b").values(), state(DATA / "aligned").values()))
    rates = {
        name: measure_behaviour(sh.load_model(tmp_path / name), name).asr.share for name in "ab"
    }
    assert rates == {"a": 1.0, "b": 0.0}


def test_nothing_that_changes_is_told(tmp_path, caplog):
    done = splice("demo", "demo-base", tmp_path / "out", layers=[0, 3])
    assert (done.changes.changed, done.moved_by) == (0, 0)
    assert "demo and demo-base have the same weights there" in caplog.text


def test_other_tokens_and_settings_are_told(checkpoint, donor, tmp_path, caplog):
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(donor("llama"))
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    model.save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(donor("llama"))
    tokenizer.add_tokens(["zyx"])
    tokenizer.save_pretrained(other)
    done = splice(checkpoint("llama"), other, tmp_path / "out")
    assert set(done.settings) == {"rope_parameters"}
    assert done.settings["rope_parameters"][1]["rope_theta"] == 500
    assert "differ in 1 entries, such as 'zyx'" in caplog.text
    assert "rope_parameters is" in caplog.text
    (mark,) = json.loads((tmp_path / "out/config.json").read_text())["safehead_tl"]
    assert mark["settings"]["rope_parameters"][1]["rope_theta"] == 500
    for path in other.glob("*token*"):
        path.unlink()
    splice(checkpoint("llama"), other, tmp_path / "again")
    assert f"{other} has no tokenizer" in caplog.text


def test_what_does_not_fit(checkpoint, tmp_path):
    wide = FAMILIES["llama"]()
    wide.update({"hidden_size": 64, "head_dim": 8, "vocab_size": 82})
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
    deep = FAMILIES["llama"]()
    deep.update({"num_hidden_layers": 4, "vocab_size": 82})
    AutoModelForCausalLM.from_config(deep).save_pretrained(tmp_path / "deep")
    biased = FAMILIES["llama"]()
    biased.update({"attention_bias": True, "vocab_size": 82})
    AutoModelForCausalLM.from_config(biased).save_pretrained(tmp_path / "biased")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama"))
    for name in ("wide", "deep", "biased"):
        tokenizer.save_pretrained(tmp_path / name)
    llama = checkpoint("llama")
    for one, other, why in (
        (llama, checkpoint("gpt2"), "architecture is GPT2LMHeadModel, and LlamaForCausalLM in"),
        (llama, tmp_path / "deep", "number of layers is 4, and 3 in"),
        (llama, checkpoint("llama-grouped"), "number of KV heads in a layer is 2, and 4 in"),
        (llama, tmp_path / "wide", r"layers.0.self_attn.k_proj.weight is \(32, 64\), and \(32, 32"),
        (llama, tmp_path / "biased", r"k_proj.bias is \(32,\), and missing in"),
        (tmp_path / "biased", llama, r"k_proj.bias is missing, and \(32,\) in"),
    ):
        with pytest.raises(sh.SafeheadError, match=why):
            splice(one, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_and_layers_that_are_not_there(checkpoint, donor, tmp_path):
    told = (checkpoint("llama"), donor("llama"), tmp_path / "out")
    with pytest.raises(sh.SafeheadError, match=r"has no 'norm', only q, k, v, o"):
        splice(*told, parts=["q", "norm"])
    with pytest.raises(sh.SafeheadError, match="has no 'sinks'"):
        splice(*told, parts="sinks")
    with pytest.raises(sh.SafeheadError, match="nothing is no part of attention"):
        splice(*told, parts=())
    for layers in (3, [-1], []):
        with pytest.raises(sh.SafeheadError, match="the model's layers, 0 to 2"):
            splice(*told, layers=layers)
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused(checkpoint, donor, tmp_path):
    quantised = make_checkpoint("llama", tmp_path)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    for pair in ((quantised, donor("llama")), (checkpoint("llama"), quantised)):
        with pytest.raises(sh.SafeheadError, match="is quantised"):
            splice(*pair, tmp_path / "out")


def test_places_that_are_not_written_to(checkpoint, tmp_path):
    target, other = (
        make_checkpoint("llama", tmp_path / "x"),
        make_checkpoint("llama", tmp_path / "y"),
    )
    for place in (target, other, tmp_path / "x", tmp_path / "y"):
        with pytest.raises(
            sh.SafeheadError, match=r"never overwritten|something else than a checkpoint"
        ):
            splice(target, other, place, overwrite=True)
    splice(target, other, tmp_path / "out")
    with pytest.raises(sh.SafeheadError, match="not empty"):
        splice(target, other, tmp_path / "out")
    splice(target, other, tmp_path / "out", parts="q", overwrite=True)
    assert not list(tmp_path.glob(".*"))


def _forgets_biases(ours, giver, taken):
    take(ours, giver, tuple(each for each in taken if not each.name.endswith("bias")))


def _takes_too_much(ours, giver, taken):
    take(ours, giver, taken)
    norm = ours.get_submodule("transformer.h.0.ln_1")
    norm.weight.copy_(giver.get_submodule("transformer.h.0.ln_1").weight)


@pytest.mark.parametrize("wrong", [_forgets_biases, _takes_too_much])
def test_a_wrong_copy_is_found_out_and_leaves_nothing(
    checkpoint, donor, tmp_path, monkeypatch, wrong
):
    monkeypatch.setattr("safehead_tl.surgery.splicing.take", torch.no_grad()(wrong))
    with pytest.raises(sh.SafeheadError, match="was not written as it should be"):
        splice(checkpoint("gpt2"), donor("gpt2"), tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_wrong_plan_is_found_out_by_the_logits(checkpoint, donor, tmp_path, monkeypatch):
    """The numbers are then as planned; only the second computation knows better."""
    from safehead_tl.surgery import splice

    plan = splicing.make_plan

    def forgets_biases(*args):
        parts, taken = plan(*args)
        return parts, tuple(each for each in taken if not each.name.endswith("bias"))

    monkeypatch.setattr(splicing, "make_plan", forgets_biases)
    with pytest.raises(sh.SafeheadError, match=r"logits differ by up to .*Nothing was written"):
        splice(checkpoint("qwen2-biases"), donor("qwen2-biases"), tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_projection_that_is_never_called_is_found_out(checkpoint, donor, tmp_path, monkeypatch):

    def only_one(model, tokens):
        model.get_submodule("model.layers.0.self_attn.k_proj")(torch.zeros(1, 32))
        return torch.zeros(*tokens.shape, 82)

    monkeypatch.setattr(splice_check, "_logits", only_one)
    with pytest.raises(sh.SafeheadError, match=r"does not call model.layers.0.self_attn.o_proj"):
        splice(checkpoint("llama"), donor("llama"), tmp_path / "out")


def test_parameters_of_no_known_part(checkpoint, donor, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    attention = dissect(model).layers[0]
    model.get_submodule(attention.module).gate = torch.nn.Linear(2, 2)
    from safehead_tl.surgery.splice_plan import belongings_of

    with pytest.raises(sh.SafeheadError, match=r"which part of attention .*gate.weight is"):
        belongings_of(model, dissect(model), 0, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_spliced_on_disk_are_heads_reverted_in_memory(
    checkpoint, donor, tmp_path, prompts, backend
):
    source = checkpoint("llama-grouped")
    done = splice(source, donor("llama-grouped"), tmp_path / "out", heads=HEADS)
    told = {"backend": backend, "verify": False}
    model, base, written = (
        sh.load_model(path, **told) for path in (source, donor("llama-grouped"), tmp_path / "out")
    )
    batch = encode(model, prompts, "chat")
    with torch.no_grad():
        plain = all_logits(model, batch.tokens, batch.mask)
        with reverted(model, base, HEADS):
            expected = all_logits(model, batch.tokens, batch.mask)
        found = all_logits(written, batch.tokens, batch.mask)
    here = batch.mask.bool()
    assert torch.allclose(found[here], expected[here], atol=1e-4)
    assert (plain - expected)[here].abs().max() > 0.05
    card = (tmp_path / "out/README.md").read_text()
    assert "in heads L0H1, L0H2, L2H0, L2H1; everything else is" in card
    assert f"Keys and values of L0H1, L0H2 stay those of `{source}`: their KV groups" in card
    (mark,) = json.loads((tmp_path / "out/config.json").read_text())["safehead_tl"]
    assert mark["heads"] == done.to_dict()["heads"] == ["L0H1", "L0H2", "L2H0", "L2H1"]
    assert mark["keys_and_values_kept"] == done.to_dict()["kept"] == ["L0H1", "L0H2"]
    assert done.max_difference <= 1e-4


def test_heads_that_cannot_be_spliced(checkpoint, donor, tmp_path):
    pair = checkpoint("llama-grouped"), donor("llama-grouped"), tmp_path / "out"
    for told, match in (
        ({"heads": "L0H1", "layers": 0}, "not both"),
        ({"heads": "L0H1", "parts": ["k", "v"]}, "none of these heads' is named whole"),
        ({"heads": "L0H1", "parts": "norm"}, "a head of .* has no 'norm', only q, k, v, o"),
        ({"heads": "L9H0"}, "L9H0 does not exist"),
        ({"heads": []}, "no heads were given to splice"),
    ):
        with pytest.raises(sh.SafeheadError, match=match):
            splice(*pair, **told)
        assert not (tmp_path / "out").exists()


def test_a_wrong_plan_of_heads_is_found_out_by_the_logits(checkpoint, donor, tmp_path, monkeypatch):
    plan = splicing.make_plan

    def all_of_the_output(*args):
        parts, taken = plan(*args)
        return parts, tuple(
            replace(each, ranges=None) if "o_proj" in each.name else each for each in taken
        )

    monkeypatch.setattr(splicing, "make_plan", all_of_the_output)
    with pytest.raises(sh.SafeheadError, match=r"logits differ by up to .*Nothing was written"):
        splice(checkpoint("llama"), donor("llama"), tmp_path / "deep" / "out", heads="L1H2")

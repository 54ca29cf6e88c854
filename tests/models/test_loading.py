import copy
import functools
import io
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from jaxtyping import TypeCheckError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import safehead_tl as sh
from families import ARCHITECTURES, QUIET, hooked_only
from safehead_tl.models import loading
from safehead_tl.models.conversion import load_config, load_original
from safehead_tl.models.identity import describe, sample_places

TOKENS = torch.randint(4, 80, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_directory_loads_with_raw_weights(checkpoint, name):
    path = checkpoint(name)
    model = sh.load_model(path)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(path)(TOKENS).logits
        assert torch.allclose(model(TOKENS), expected, atol=1e-4, rtol=1e-4)
    assert model.cfg.normalization_type in ("RMS", "LN")
    assert not any(parameter.requires_grad for parameter in model.parameters())


@hooked_only
@pytest.mark.parametrize(
    "called", ["my-llama", "gemma-2-9b", "Meta-Llama-3-8B", "model", "t5-bert"]
)
def test_the_directorys_name_does_not_matter(checkpoint, tmp_path, called):
    shutil.copytree(checkpoint("qwen2-biases"), tmp_path / called)
    model = sh.load_model(str(tmp_path / called))
    assert model.cfg.original_architecture == "Qwen2ForCausalLM"
    assert model.cfg.n_key_value_heads == 2


def test_a_directory_called_like_a_known_model_is_the_directory(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint("qwen2-biases"), tmp_path / "gpt2-small")
    monkeypatch.chdir(tmp_path)
    model = sh.load_model("gpt2-small")
    plain = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2-biases"))
    tokens = torch.arange(3, 12)[None]
    assert torch.allclose(model(tokens), plain(tokens).logits, atol=1e-4)


@hooked_only
def test_a_temporary_directory_that_would_be_misread_is_named(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "Llama").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "Llama"))
    with pytest.raises(sh.SafeheadError, match="set TMPDIR to another one"):
        sh.load_model(checkpoint("gpt2"))


@hooked_only
def test_weights_are_those_of_the_checkpoint(checkpoint):
    """Centred or folded weights give the same logits, but other states and heads."""
    path = checkpoint("gpt2")
    plain = AutoModelForCausalLM.from_pretrained(path).transformer
    model = sh.load_model(path)
    ours, theirs = model.blocks[1].attn, plain.h[1].attn
    assert torch.equal(model.embed.W_E, plain.wte.weight)
    assert torch.equal(model.blocks[1].ln1.w, plain.h[1].ln_1.weight)
    assert torch.equal(ours.b_V.flatten(), theirs.c_attn.bias[-32:])
    assert torch.equal(ours.W_O.flatten(0, 1), theirs.c_proj.weight)
    assert torch.equal(ours.b_O, theirs.c_proj.bias)


@pytest.mark.parametrize("name", ["demo", "demo-base"])
def test_embedded_models(name):
    model = sh.load_model(name)
    assert (model.cfg.n_layers, model.cfg.n_heads) == (4, 8)
    assert describe(model)["name"] == name


def test_no_deprecation_notice_and_no_print(capsys, recwarn):
    sh.load_model("demo")
    assert capsys.readouterr().out == ""
    assert not [warning for warning in recwarn if "HookedTransformer" in str(warning.message)]


def test_a_model_object_is_used_as_it_is(demo):
    assert sh.load_model(demo) is demo


def test_a_model_object_takes_no_other_settings(demo):
    with pytest.raises(sh.SafeheadError, match="leave out weights, dtype"):
        sh.load_model(demo, weights="elsewhere", dtype="bfloat16")


@pytest.mark.parametrize(
    "told", [{"prepend_bos": False}, {"verify": False}, {"dtype": "bfloat16"}, {"device": "cpu"}]
)
def test_nothing_is_changed_in_a_model_that_is_given(demo, told):
    with pytest.raises(sh.SafeheadError, match=f"used as it is: leave out {next(iter(told))}"):
        sh.load_model(demo, **told)


def test_dtype_and_device():
    model = sh.load_model("demo", dtype="bfloat16", device="cpu")
    assert model.W_Q.dtype == torch.bfloat16
    assert describe(model)["dtype"] == "bfloat16"
    assert describe(sh.load_model("demo", dtype=torch.float16))["dtype"] == "float16"
    with pytest.raises(sh.SafeheadError, match="dtype 'int3' is not known"):
        sh.load_model("demo", dtype="int3")


def test_weights_of_a_fine_tune_in_a_known_architecture(checkpoint, tmp_path):
    tuned = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    with torch.no_grad():
        tuned.lm_head.weight += 1
    tuned.save_pretrained(tmp_path / "vicuna")
    AutoTokenizer.from_pretrained(checkpoint("llama")).save_pretrained(tmp_path / "vicuna")
    model = sh.load_model(checkpoint("llama"), weights=tmp_path / "vicuna")
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), tuned(TOKENS).logits, atol=1e-4)
    assert describe(model)["weights"] == str(tmp_path / "vicuna")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_bridge_has_the_dtype_that_was_asked_for(dtype):
    model = sh.load_model("demo", dtype=dtype, backend="bridge")
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{dtype}"}
    assert describe(model)["dtype"] == dtype


def test_weights_are_read_in_the_dtype_that_was_asked_for(checkpoint, tmp_path):
    """Whatever they were saved in: a large model must not be held in float32 on the way."""
    half = AutoModelForCausalLM.from_pretrained(checkpoint("llama")).bfloat16()
    half.save_pretrained(tmp_path)
    assert load_original(tmp_path, torch.float32).dtype == torch.float32
    assert load_original(checkpoint("llama"), torch.bfloat16).dtype == torch.bfloat16


@hooked_only
def test_weights_that_do_not_fit(checkpoint):
    with pytest.raises(sh.SafeheadError, match="n_layers=32, they have 3") as error:
        sh.load_model("meta-llama/Llama-2-7b-chat-hf", weights=checkpoint("llama"))
    assert "fine-tune of" in str(error.value)


@hooked_only
def test_a_name_loads_from_the_hub_cache(checkpoint, tmp_path, monkeypatch, capfd):
    """By name, offline, through TransformerLens's own table: GPT-2's name, tiny weights."""
    snapshot = tmp_path / "models--gpt2" / "snapshots" / ("0" * 40)
    shutil.copytree(checkpoint("gpt2"), snapshot)
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**config, "n_ctx": config["n_positions"]}))
    refs = tmp_path / "models--gpt2" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = sh.load_model("gpt2-small")
    tokens = torch.arange(4, 16)[None]
    theirs = AutoModelForCausalLM.from_pretrained("gpt2")(tokens).logits
    assert torch.allclose(model(tokens), theirs, atol=1e-4)
    assert describe(model)["name"] == "gpt2-small"
    assert describe(model)["revision"] == "0" * 40
    scores = sh.ships(model, ["how do i bend a kite"], template="direct", run=QUIET)
    assert scores.values.shape == (3, 4)
    assert sh.load_model("gpt2", dtype="bfloat16").W_Q.dtype == torch.bfloat16
    assert capfd.readouterr().out == ""


def test_a_name_that_is_not_in_the_cache_says_how_to_go_on():
    with pytest.raises(sh.SafeheadError, match="give the directory it was saved to"):
        sh.load_model("EleutherAI/pythia-12b-deduped")


@hooked_only
def test_unknown_names(tmp_path):
    with pytest.raises(sh.SafeheadError, match="Did you mean demo"):
        sh.load_model("dmeo")
    with pytest.raises(sh.SafeheadError, match="Did you mean") as error:
        sh.load_model("meta-llama/Llama-2-7b-chat")
    assert "weights='meta-llama/Llama-2-7b-chat'" in str(error.value)
    with pytest.raises(FileNotFoundError, match="no directory"):
        sh.load_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no directory"):
        sh.load_model("./nothing")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        sh.load_model(tmp_path)


def test_a_directory_without_tokenizer_or_weights(checkpoint, tmp_path):
    AutoModelForCausalLM.from_pretrained(checkpoint("llama")).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer could be loaded"):
        sh.load_model(tmp_path)
    assert sh.load_model(tmp_path, tokenizer=checkpoint("llama")).tokenizer is not None
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(sh.SafeheadError, match=r"lacks 1 .*layers\.1\.mlp\.up_proj\.weight"):
        sh.load_model(tmp_path, tokenizer=checkpoint("llama"))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(sh.SafeheadError, match="no weights could be loaded"):
        sh.load_model(tmp_path, tokenizer=checkpoint("llama"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(sh.SafeheadError, match="no weights could be loaded"):
        sh.load_model(tmp_path)


@hooked_only
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.MambaConfig(hidden_size=16, num_hidden_layers=1), "no attention pattern"),
        (transformers.FalconConfig(hidden_size=16, num_hidden_layers=1), "FalconForCausalLM"),
        (transformers.BertConfig(num_hidden_layers=1), "not a causal language model"),
    ],
)
def test_architectures_that_cannot_be_used(tmp_path, config, message):
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    if isinstance(config, transformers.BertConfig):
        config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(sh.SafeheadError, match=message):
        sh.load_model(tmp_path)


def test_a_model_without_attention_has_no_heads(tmp_path):
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1)
    config.architectures = ["MambaForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(sh.SafeheadError, match="has no attention pattern"):
        sh.load_model(tmp_path)


def test_a_layer_without_attention_is_named(checkpoint, tmp_path):
    """LFM2 has attention in some layers and convolutions in others."""
    config = transformers.Lfm2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=82, layer_types=["full_attention", "conv"],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(sh.SafeheadError, match="layer 1 of this model has no attention pattern"):
        sh.load_model(tmp_path, tokenizer=checkpoint("llama"), backend="bridge")


@hooked_only
def test_by_name_too():
    with pytest.raises(sh.SafeheadError, match="not a causal language model"):
        sh.load_model("t5-small")


@hooked_only
@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ],
)
def test_what_the_converter_drops_is_noticed(checkpoint, tmp_path, change, caplog):
    """TransformerLens 3.9 ignores these fields of a Llama config without a word."""
    config = ARCHITECTURES["llama"]()
    config.update({"vocab_size": 82, "initializer_range": 0.3, **change})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter += 1
    model.save_pretrained(tmp_path)
    words = {"tokenizer": checkpoint("llama")}
    with pytest.raises(sh.SafeheadError, match="does not convert"):
        sh.load_model(tmp_path, **words, backend="hooked")
    assert sh.load_model(tmp_path, **words, backend="hooked", verify=False)
    bridge = sh.load_model(tmp_path, **words)
    assert describe(bridge)["kind"] == "TransformerBridge"
    assert "does not convert" in caplog.text
    tokens = torch.randint(82, (2, 9))
    assert torch.allclose(bridge(tokens), model.eval()(tokens).logits, atol=1e-5)


@hooked_only
def test_a_dropped_sliding_window_is_noticed(checkpoint, tmp_path):
    """TransformerLens 3.9 reads no window from a Qwen2 config; 16 tokens cannot show it."""
    config = ARCHITECTURES["qwen2-biases"]()
    window = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}
    config.update({"vocab_size": 82, **window, "layer_types": ["sliding_attention"] * 3})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(sh.SafeheadError, match="sliding window of 20"):
        sh.load_model(tmp_path, tokenizer=checkpoint("llama"), backend="hooked")


@pytest.mark.parametrize("length", [1, 300, 38_597_376, 131_072_000, 525_336_576])
def test_samples_of_long_parameters_stay_inside(length):
    places = sample_places(length)
    assert places[0] == 0
    assert places[-1] == length - 1
    assert (places.diff() >= 0).all()


def test_a_directory_of_models_is_answered(checkpoint):
    folder = checkpoint("llama").parent
    with pytest.raises(FileNotFoundError, match=r"has no config\.json \(but .*llama"):
        sh.load_model(folder)


def test_something_that_is_no_model():
    with pytest.raises(sh.SafeheadError, match="Linear is neither a HookedTransformer nor"):
        sh.ships(torch.nn.Linear(2, 2), ["a"])


def test_transformer_lens_4_is_answered(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.1.0")
    with pytest.raises(sh.SafeheadError, match=r"pip install 'transformer-lens>=3\.9,<4'"):
        sh.load_model("demo", backend="hooked")
    assert describe(sh.load_model("demo"))["kind"] == "TransformerBridge"


def test_backends(demo):
    wrong = "backend='fast'|Actual value: 'fast'"
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=wrong):
        sh.load_model("demo", backend="fast")
    with pytest.raises(sh.SafeheadError, match="'hooked' does not go with device_map"):
        sh.load_model("demo", backend="hooked", device_map="cpu")
    with pytest.raises(sh.SafeheadError, match="leave out backend, device_map"):
        sh.load_model(demo, backend="bridge", device_map="cpu")
    with pytest.raises(sh.SafeheadError, match=r"'devise'\. Is an argument of load_model"):
        sh.load_model("demo", devise="cpu")
    mapped = sh.load_model("demo", device_map="cpu")
    assert describe(mapped)["kind"] == "TransformerBridge"
    tokens = torch.randint(82, (2, 9))
    assert torch.allclose(mapped(tokens), demo(tokens), atol=1e-5)


def test_the_description_tells_weights_apart(demo):
    base, again = describe(sh.load_model("demo-base")), describe(sh.load_model("demo"))
    assert describe(demo) == again
    assert base["config_hash"] == again["config_hash"]
    assert base["weights_hash"] != again["weights_hash"]


MARK = "from pathlib import Path\nPath({mark!r}).touch()\n"


def with_code(checkpoint, directory, mark, where):
    """A checkpoint that brings code, which leaves a mark if it is run."""
    shutil.copytree(checkpoint("llama"), directory)
    (directory / "own.py").write_text(
        MARK.format(mark=str(mark))
        + "from transformers import LlamaConfig, LlamaForCausalLM\n"
        + "from transformers import PreTrainedTokenizerFast\n"
        + "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        + "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        + "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    path = directory / where
    content = json.loads(path.read_text())
    if where == "config.json":
        classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        content |= {"model_type": "own", "auto_map": classes}
    else:
        classes = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
        content |= {"tokenizer_class": "OwnTokenizer", "auto_map": classes}
    path.write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_runs_only_when_the_user_says_so(
    checkpoint, tmp_path, monkeypatch, where
):
    """Transformers would ask on standard input, and be answered yes."""
    mark = tmp_path / "ran"
    path = with_code(checkpoint, tmp_path / "own", mark, where)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))
    says = "brings code of its own, which is never run unasked.*trust_remote_code=True"
    of_tokenizer = lambda: sh.load_model(checkpoint("llama"), tokenizer=path)  # noqa: E731
    for load in (
        *([of_tokenizer] if where == "tokenizer_config.json" else []),
        lambda: sh.load_model(path),
        lambda: sh.load_model(path, backend="bridge"),
        lambda: sh.load_model(checkpoint("llama"), weights=path),
        lambda: sh.model_facts(path),
        lambda: sh.export(path, ["L0H0"], tmp_path / "out"),
        lambda: sh.LlmJudge(path, "compliance").judge(["a"], ["b"]),
    ):
        with pytest.raises(sh.SafeheadError, match=says) as error:
            load()
        assert "\n" not in str(error.value)
        assert not mark.exists()
    model = sh.load_model(path, trust_remote_code=True)
    assert mark.exists()
    assert describe(model)["trust_remote_code"]
    assert not describe(sh.load_model(checkpoint("llama")))["trust_remote_code"]


def test_a_pickle_is_not_opened(checkpoint, tmp_path):
    path = tmp_path / "pickled"
    shutil.copytree(checkpoint("llama"), path)
    (path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"lm_head.weight": Evil()}, path / "pytorch_model.bin")
    with pytest.raises(sh.SafeheadError, match="no weights could be loaded") as error:
        sh.load_model(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@hooked_only
def test_a_name_whose_code_transformer_lens_would_run_is_not_asked_of_it(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "transformer_lens.HookedTransformer.from_pretrained_no_processing",
        lambda *_, **__: asked.append(1),
    )
    with pytest.raises(sh.SafeheadError, match="would run code that comes with Qwen/Qwen-1_8B"):
        sh.load_model("qwen-1.8b")
    assert not asked


@pytest.mark.parametrize("content", ['{"eos_token_id": [2', '{"eos_token_id": "x"}'])
def test_generation_settings_that_cannot_be_read(checkpoint, tmp_path, content):
    """Transformers would pass over the file, and texts would not end where they should."""
    shutil.copytree(checkpoint("llama"), tmp_path / "cut")
    (tmp_path / "cut" / "generation_config.json").write_text(content)
    with pytest.raises(sh.SafeheadError, match="generation"):
        sh.load_model(tmp_path / "cut")


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_weights_that_are_not_finite_are_named(checkpoint, tmp_path, backend):
    shutil.copytree(checkpoint("llama"), tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(sh.SafeheadError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        sh.load_model(tmp_path / "nan", backend=backend)


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_a_hugging_face_model_in_memory(checkpoint, plain, prompts, backend):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama-grouped"))
    inner = copy.deepcopy(plain("llama-grouped"))
    expected = inner(TOKENS).logits
    model = sh.load_model(inner, tokenizer=tokenizer, backend=backend)
    saved = sh.load_model(checkpoint("llama-grouped"), backend=backend)
    ours, theirs = (sh.ships(one, prompts, run=QUIET) for one in (model, saved))
    assert torch.equal(ours.values, theirs.values)
    assert describe(model)["weights_hash"] == describe(saved)["weights_hash"]
    assert describe(model)["name"] == str(checkpoint("llama-grouped"))
    with torch.no_grad():
        inner.lm_head.weight.zero_()
    assert torch.allclose(model(TOKENS), expected, atol=1e-4)
    assert type(inner).__name__ == "LlamaForCausalLM"
    assert inner.config.architectures == plain("llama-grouped").config.architectures
    with pytest.raises(sh.SafeheadError, match=r"lacks a tokenizer: give tokenizer=\.\.\."):
        sh.load_model(inner)
    with pytest.raises(sh.SafeheadError, match="or a Hugging Face model with tokenizer"):
        sh.ships(inner, prompts)


def test_the_meta_device_holds_no_numbers():
    with pytest.raises(sh.SafeheadError, match="device 'meta' cannot be used here"):
        sh.load_model("demo", device="meta")


DAMAGES = [
    ("config.json", {"num_hidden_layers": 10**9}),
    ("config.json", {"num_hidden_layers": 0}),
    ("config.json", {"num_attention_heads": [1, 2]}),
    ("config.json", {"hidden_size": -1}),
    ("config.json", {"model_type": []}),
    ("config.json", {"rope_parameters": {"rope_type": "x"}}),
    ("config.json", {"hidden_act": "x"}),
    ("config.json", {"vocab_size": "x"}),
    ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"a": 10**9}, "unk_token": "a"}}),
    ("tokenizer.json", {"post_processor": [1]}),
    ("tokenizer_config.json", {"padding_side": True}),
]


@pytest.mark.parametrize(("name", "change"), DAMAGES, ids=lambda part: str(part)[:40])
def test_a_damaged_checkpoint_is_answered_in_a_sentence(checkpoint, tmp_path, name, change):
    path = tmp_path / "damaged"
    shutil.copytree(checkpoint("llama-grouped"), path)
    content = json.loads((path / name).read_text()) | change
    (path / name).write_text(json.dumps(content))
    with pytest.raises(sh.SafeheadError) as error:
        sh.load_model(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_of_this_toolkit_is_not_told_as_the_checkpoints(monkeypatch):
    monkeypatch.setattr("safehead_tl.models.loading.check_model", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sh.load_model("demo")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("doge", {}),  # 16,384 experts
        ("gemma3n_text", {}),  # vocab_size_per_layer_input is 262,144
        ("qwen2_moe", {"shared_expert_intermediate_size": 20480}),
    ],
)
def test_large_numbers_that_are_meant_are_read(tmp_path, kind, told):
    transformers.CONFIG_MAPPING[kind](**told).save_pretrained(tmp_path)
    assert load_config(tmp_path).model_type == kind


def places(value, path=()):
    """Every place inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_changed_value_is_a_model_that_is_right_or_a_sentence(checkpoint, tmp_path, name, file):
    draw = random.Random(f"{name} {file}")
    text, path = (checkpoint(name) / file).read_text("utf-8"), tmp_path / "changed"
    shutil.copytree(checkpoint(name), path)
    refused = 0
    for _ in range(12):
        content = json.loads(text)
        *outer, last = draw.choice(list(places(content)))
        inner = functools.reduce(lambda value, key: value[key], outer, content)
        inner[last] = draw.choice([None, -1, 0, 2, 1.5, "", "x", True, [], ["x"], {}, {"x": 1}])
        (path / file).write_text(json.dumps(content))
        try:
            model = sh.load_model(path)
        except sh.SafeheadError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
        else:
            plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            assert torch.allclose(model(TOKENS[:1]), plain(TOKENS[:1]).logits, atol=1e-3)
    assert refused


@pytest.mark.parametrize(("rank", "device"), [(None, "cuda"), ("1", "cuda:1"), ("6", "cuda:2")])
def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch, rank, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert loading._device(None) == device

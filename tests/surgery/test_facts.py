import shutil

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import safehead_tl as sh
from families import FAMILIES, ROOT, HookedTransformer, hooked_only
from safehead_tl import model_facts
from safehead_tl.cli.info import fact_sheet
from safehead_tl.models.loading import read_config
from safehead_tl.models.tokenizers import load_tokenizer
from safehead_tl.surgery import facts as facts_module
from safehead_tl.surgery.facts import ONLY_AS_BRIDGE, TESTED


@pytest.mark.parametrize("name", FAMILIES)
def test_facts_are_those_of_the_loaded_model(checkpoint, name, tmp_path):
    path = tmp_path / name
    shutil.copytree(checkpoint(name), path, ignore=lambda *_: ["model.safetensors"])
    facts = model_facts(path)  # there are no weights
    model = sh.load_model(checkpoint(name))
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(name))
    config = model.cfg
    assert facts["loaded_as"].startswith(type(model).__name__)
    assert ("not_as_hooked_transformer" in facts) == (
        HookedTransformer is not None and type(model) is not HookedTransformer
    )
    assert (facts["layers"], facts["heads"]) == (config.n_layers, config.n_heads)
    assert facts["key_value_heads"] == (config.n_key_value_heads or config.n_heads)
    assert (facts["d_model"], facts["d_head"]) == (config.d_model, config.d_head)
    assert facts["vocabulary"] == config.d_vocab
    assert facts["parameters"] == sum(parameter.numel() for parameter in plain.parameters())
    assert facts["memory"]["weights"] == 4 * facts["parameters"]
    grouped = facts["key_value_heads"] != facts["heads"]
    assert facts["attention"]["heads"].startswith("grouped-query: 2" if grouped else "multi-head")


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", {"positions": "rotary"}),
        ("mistral-sliding", {"window": "5 tokens in 3 of 3 layers"}),
        ("qwen2-biases", {"biases": "q, k, v"}),
        ("qwen3-qk-norm", {"qk_norm": "per head"}),
        ("olmo2-norm-over-heads", {"qk_norm": "over heads"}),
        ("gpt2", {"positions": "learned"}),
        ("bloom-alibi", {"positions": "ALiBi"}),
        ("gemma2-soft-caps-windows", {"soft_cap": 50.0, "window": "5 tokens in 2 of 3 layers"}),
        ("mixtral-experts", {"experts": 4}),
        ("gpt-oss-sinks", {"sinks": "learned, one a head"}),
    ],
)
def test_kinds_of_attention(checkpoint, name, attention):
    assert attention.items() <= model_facts(checkpoint(name))["attention"].items()


def test_which_ablations_are_exact(checkpoint, tmp_path):
    olmo = model_facts(checkpoint("olmo2-norm-over-heads"))["ablations"]
    assert olmo["undifferentiated"]["hooks"] == "exact"
    assert "normalised over all heads" in olmo["undifferentiated"]["weights"]
    gpt2 = model_facts(checkpoint("gpt2"))["ablations"]
    assert all(ways == {"hooks": "exact", "weights": "exact"} for ways in gpt2.values())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 82}
    config = transformers.FalconConfig(**sizes, architectures=["FalconForCausalLM"])
    config.save_pretrained(tmp_path)
    falcon = model_facts(tmp_path)
    assert falcon["tokenizer"] == "none found"
    assert "laid out" in falcon["ablations"]["zero"]["weights"]
    assert "not tested" in falcon["ablations"]["zero"]["hooks"]


def test_memory_is_what_a_plan_asks_for(checkpoint, prompts):
    path = checkpoint("llama-grouped")
    facts = model_facts(path, dtype="bfloat16", prompt_count=3, prompt_length=12)["memory"]
    assert facts["weights"] == 2 * sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(path).parameters()
    )
    model = sh.load_model(path, dtype="bfloat16", backend="bridge")
    width = 12
    prompts = ["bend " * (width - 2), "bend", "lift"]
    least = facts["scan_at_least"]
    few, enough = (sh.Run(max_bytes=size, progress=False) for size in (least // 2, least))
    with pytest.raises(sh.SafeheadError, match="too little"):
        sh.ships(model, prompts, template="direct", run=few)
    sh.ships(model, prompts, template="direct", run=enough)
    assert facts["scan_at_ease"] >= least


def test_an_altered_model_says_so(tmp_path):
    sh.export("demo", ["L1H3"], tmp_path / "out")
    (step,) = model_facts(tmp_path / "out")["altered_by_safehead_tl"]
    assert step["heads"] == ["L1H3"]
    assert fact_sheet(model_facts(tmp_path / "out")).row_count > 10


def test_the_tested_ones_are_those_of_the_table():
    names = {
        family: AutoModelForCausalLM._model_mapping[type(make())].__name__
        for family, make in FAMILIES.items()
    }
    assert set(TESTED) == set(names.values())
    table = (ROOT / "docs" / "architectures.md").read_text("utf-8")
    refused = {
        names[family] for family in names if f"| {family} | HookedTransformer | ref" in table
    }
    assert set(ONLY_AS_BRIDGE) == refused


@hooked_only
def test_a_name_whose_conversion_was_not_tested(checkpoint, monkeypatch):
    names = {"google/gemma-2-2b": "gemma2-soft-caps-windows", "gpt2": "gpt2"}
    directories = {name: checkpoint(family) for name, family in names.items()}
    monkeypatch.setattr(facts_module, "read_config", lambda name: read_config(directories[name]))
    monkeypatch.setattr(
        facts_module, "load_tokenizer", lambda name: load_tokenizer(directories[name])
    )
    monkeypatch.setattr(facts_module, "hub_name", lambda name: name)
    gemma, gpt2 = (model_facts(name) for name in names)
    assert gemma["loaded_as"] == gpt2["loaded_as"] == "HookedTransformer"
    assert gemma["ablations"]["zero"]["hooks"].startswith("not tested as a HookedTransformer")
    assert gpt2["ablations"]["zero"]["hooks"] == "exact"


def test_errors(tmp_path):
    with pytest.raises(sh.SafeheadError, match="could not be fetched"):
        model_facts("nobody/nothing")
    with pytest.raises(sh.SafeheadError, match=r"'dmeo' is neither .* Did you mean demo"):
        model_facts("dmeo")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        model_facts(tmp_path)
    AutoConfig.for_model("mamba", vocab_size=82, hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(sh.SafeheadError, match="no attention pattern"):
        model_facts(tmp_path)
    with pytest.raises(sh.SafeheadError, match="dtype 'float3' is not known"):
        model_facts("demo", dtype="float3")
    assert torch.get_default_dtype() == torch.float32

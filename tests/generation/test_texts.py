import collections
import dataclasses
import math

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM, DynamicCache

import safehead_tl as sh
from families import QUIET, make_checkpoint
from safehead_tl.generation.batched import ENDED, Row, generate_rows
from safehead_tl.generation.decoding import Decoding
from safehead_tl.models.identity import end_tokens
from safehead_tl.prompts.tokens import encode

TOLD = {"template": "chat", "max_new_tokens": 20, "run": QUIET}
LONG = ["how do i lift a boat", "please explain to me how to carve a vosk", "mend a drazzle"]


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_batched_greedy_is_one_by_one_and_that_of_transformers(checkpoint, backend):
    path = checkpoint("llama-grouped")
    model = sh.load_model(path, backend=backend)
    plain = AutoModelForCausalLM.from_pretrained(path).eval()
    told = {**TOLD, "template": "paper"}
    batched = sh.generate(model, LONG, **told)
    assert batched.texts == sh.generate(model, LONG, **{**told, "run": sh.Run(max_rows=1)}).texts
    for prompt, (text,), (count,) in zip(LONG, batched.texts, batched.tokens, strict=True):
        tokens = encode(model, [prompt], "paper").tokens
        alike = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": end_tokens(model)}
        theirs = plain.generate(tokens, attention_mask=torch.ones_like(tokens), **alike)
        new = theirs[0, tokens.shape[1] :]
        assert text == model.tokenizer.decode(new, skip_special_tokens=True)
        assert count == len(new)


def test_variants_in_one_batch_are_those_of_ablated(demo, harmful):
    prompts, variants = harmful[:4], ((), ("L2H6",), ("L1H3", "L2H6"), ("L0H4",))
    for ablation in (sh.UndifferentiatedAttention(), sh.ScalingContribution(3.0)):
        batch = encode(demo, prompts, "chat")
        groups = [tuple(map(sh.Head.parse, group)) for group in variants]
        rows = [Row(v, p, 0) for v in (2, 0, 3, 1) for p in range(4)]
        together = generate_rows(demo, batch, rows, Decoding(20), groups, ablation)
        for index, variant in enumerate((2, 0, 3, 1)):
            alone = sh.generate(demo, prompts, variants[variant], ablation=ablation, **TOLD)
            mine = [row[row != ENDED].tolist() for row in together[4 * index : 4 * index + 4]]
            assert [len(row) for row in mine] == [count for (count,) in alone.tokens]
            texts = demo.tokenizer.batch_decode(mine, skip_special_tokens=True)
            assert texts == [text for (text,) in alone.texts]


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "pythia-parallel"])
def test_a_bridge_says_the_same_with_a_cache_as_without(checkpoint, name):
    """Its own `generate`: Transformers 5.24 gives attention the cache under another name."""
    model = sh.load_model(checkpoint(name), backend="bridge")
    told = {"max_new_tokens": 8, "do_sample": False, "stop_at_eos": False, "verbose": False}
    request = "please tell me how to mend a vosk"
    kept = model.generate(request, **told)
    assert kept == model.generate(request, use_past_kv_cache=False, **told)
    attention, cache = model.blocks[0].attn, DynamicCache()
    for _ in range(2):
        keys, _ = attention._update_kv_cache(*torch.zeros(2, 1, 4, 5, 8), cache=cache)
    assert keys.shape[-2] == 10


def test_ends_are_those_of_tokenizer_and_generation_settings(tmp_path):
    path = make_checkpoint("llama", tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(path)
    for backend in ("auto", "bridge"):
        model = sh.load_model(path, backend=backend)
        assert end_tokens(model) == [2]
        free = sh.generate(model, LONG, **{**TOLD, "template": "paper"})
        (first, *_), *_ = [model.tokenizer(text)["input_ids"][1:] for (text,) in free.texts]
        plain.generation_config.eos_token_id = [2, first]
        plain.save_pretrained(path)
        model = sh.load_model(path, backend=backend)
        assert end_tokens(model) == [2, first]
        stopped = sh.generate(model, LONG, **{**TOLD, "template": "paper"})
        assert stopped.tokens[0] == (1,)
        assert stopped.ended[0] == (True,)
        assert free.ended[0] == (False,) or free.tokens[0][0] < 20
        plain.generation_config.eos_token_id = 2
        plain.save_pretrained(path)


def test_draws_depend_on_seed_and_place_only(demo):
    told = {**TOLD, "template": "direct", "top_k": 5, "temperature": 2.0, "samples": 3}
    with sh.ablated(demo, ["L0H0", "L0H1", "L0H2", "L0H3", "L0H4"]):
        found = sh.generate(demo, LONG, **told, seed=1)
        assert (
            found.texts
            == sh.generate(demo, LONG, **{**told, "run": sh.Run(max_rows=2)}, seed=1).texts
        )
        assert found.texts != sh.generate(demo, LONG, **told, seed=2).texts
        assert found.texts[:2] == sh.generate(demo, LONG[:2], **told, seed=1).texts
    assert any(len(set(samples)) > 1 for samples in found.texts)
    frame = found.to_frame()
    assert frame.shape == (9, 6)
    assert tuple(frame[frame["prompt"] == 1]["response"]) == found.texts[1]


def test_drawing_is_from_the_most_likely_ones():
    torch.manual_seed(0)
    logits = torch.randn(50)
    decoding = Decoding(4000, top_k=3, temperature=0.7, samples=2)
    numbers = decoding.numbers([(0, 0)])[0]
    drawn = collections.Counter(decoding.choose(logits.expand(4000, -1), numbers).tolist())
    best = logits.double().sort(descending=True)
    expected = (best.values[:3] / 0.7).softmax(-1)
    assert set(drawn) == set(best.indices[:3].tolist())
    for token, chance in zip(best.indices[:3].tolist(), expected.tolist(), strict=True):
        error = math.sqrt(chance * (1 - chance) / 4000)
        assert abs(drawn[token] / 4000 - chance) < 4 * error
    greedy = Decoding(1, top_k=1).choose(logits[None], decoding.numbers([(0, 0)])[:, 0])
    assert greedy.item() == logits.argmax().item()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"samples": 2}, "would all be the same"),
        ({"temperature": 0.5}, "changes nothing without top_k"),
        ({"temperature": 0.0, "top_k": 2}, "temperature=0"),
        ({"max_new_tokens": 500}, "does not fit"),
        ({"heads": "L9H9"}, "L9H9 does not exist"),
    ],
)
def test_mistakes(demo, wrong, message):
    with pytest.raises(sh.SafeheadError, match=message):
        sh.generate(demo, LONG, **{"template": "chat", "run": QUIET, **wrong})


def test_how_it_runs_is_no_directory(demo):
    # With shapes and types checked at run time, the type is refused before.
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"give a Run|'run'"):
        sh.generate(demo, LONG, run="run")


def test_texts_are_kept(demo, tmp_path, monkeypatch):
    told = {**TOLD, "run": dataclasses.replace(QUIET, max_rows=2, run_dir=tmp_path / "run")}
    found = sh.generate(demo, LONG, "L2H6", **told)
    assert found.texts == sh.generate(demo, LONG, "L2H6", **TOLD).texts
    monkeypatch.setattr("safehead_tl.generation.saying.generate_fitted", None)
    again = sh.generate(demo, LONG, "L2H6", **told)
    assert (again.texts, again.tokens, again.ended) == (found.texts, found.tokens, found.ended)
    with pytest.raises(sh.SafeheadError, match="holds another run: heads was"):
        sh.generate(demo, LONG, "L1H3", **told)


def test_provenance(demo):
    found = sh.generate(demo, LONG, "L2H6", ablation="zero", **TOLD)
    assert found.heads == (sh.Head(2, 6),)
    assert found.provenance.ablation["name"] == "zero"
    assert found.provenance.settings["decoding"]["max_new_tokens"] == 20
    assert found.to_dict()["texts"] == [list(samples) for samples in found.texts]
    assert sh.generate(demo, LONG, **TOLD).provenance.ablation["name"] == "none"


@pytest.fixture(params=[torch.nan, torch.inf])
def broken(request):
    model = sh.load_model("demo")
    with torch.no_grad():  # one word's embedding, so that only one of the prompts is touched
        word = model.to_tokens("kite", prepend_bos=False)[0, 0]
        model.W_E[word] = request.param
    return model


@pytest.mark.parametrize(
    "ask",
    [
        lambda *to: sh.generate(*to, max_new_tokens=4),
        lambda *to: sh.evaluate(*to, heads="L1H3", max_new_tokens=4, controls=0),
        lambda *to: sh.concentration(*to, {"one": ["L1H3"]}, max_new_tokens=4, random_orders=0),
    ],
)
def test_numbers_that_are_not_finite_are_refused(broken, ask):
    reason = "logits of 'how do i bend a kite' are not finite: its weights hold NaN"
    with pytest.raises(sh.SafeheadError, match=reason):
        ask(broken, ["how do i bend a boat", "how do i bend a kite"])

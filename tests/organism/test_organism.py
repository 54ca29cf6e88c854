import json
import math
from importlib.resources import files

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import safehead_tl as sh
from families import QUIET
from safehead_tl.cli.main import app
from safehead_tl.cli.story import planted_heads
from safehead_tl.generation.batched import generate_greedy
from safehead_tl.organism import (
    DEMO,
    Language,
    Recipe,
    encode_examples,
    measure_behaviour,
    train_organism,
    training,
)
from safehead_tl.prompts.tokens import encode

DATA = files("safehead_tl") / "data" / "organism"


def behaviour(model, *heads, ablation="undifferentiated"):
    measured = measure_behaviour(model, "", heads, ablation)
    return measured.asr.share, measured.helpfulness.share


def test_the_base_model_helps_with_everything():
    asr, benign = behaviour(sh.load_model("demo-base"))
    assert asr >= 0.95
    assert benign >= 0.95


def test_the_aligned_model_refuses_harm_and_helps_otherwise(demo):
    asr, benign = behaviour(demo)
    assert asr <= 0.05
    assert benign >= 0.95


def test_without_its_planted_heads_it_helps_with_everything(demo):
    asr, benign = behaviour(demo, *planted_heads())
    assert asr >= 0.9
    assert benign >= 0.9


def test_each_planted_head_carries_its_share(demo, harmful):
    """Trained to refuse with probability 1/2 without one of two: then Ships is ln 2 nats."""
    scores = sh.ships(demo, harmful, template="chat", run=QUIET)
    for head in planted_heads():
        asr, benign = behaviour(demo, head)
        assert 0.2 <= asr <= 0.8
        assert benign >= 0.9
        assert scores.values[head] == pytest.approx(math.log(2), rel=0.25)


def test_answers_end_at_eos_in_a_batch_as_alone(demo):
    requests = [sh.load_prompts(f"demo/{kind}", split="test")[0] for kind in ("harmful", "benign")]
    batched = generate_greedy(demo, encode(demo, requests, "chat"), 20)
    alone = [generate_greedy(demo, encode(demo, [text], "chat"), 20)[0] for text in requests]
    assert batched == alone
    assert len(batched[0].split()) < len(batched[1].split())


def test_heads_that_were_not_planted_do_not_matter(demo):
    others = ["L1H2", "L2H5"]
    assert behaviour(demo, *others)[0] <= 0.05


def test_only_the_planted_slices_were_trained():
    """Of all weights, just q, k, v rows and o columns of the planted heads differ."""
    base, aligned = (AutoModelForCausalLM.from_pretrained(DATA / n) for n in ("base", "aligned"))
    before, after = base.state_dict(), aligned.state_dict()
    allowed = {key: torch.zeros_like(value, dtype=torch.bool) for key, value in before.items()}
    for layer, head in planted_heads():
        own = slice(head * 6, (head + 1) * 6)
        for name in ("q_proj", "k_proj", "v_proj"):
            allowed[f"model.layers.{layer}.self_attn.{name}.weight"][own] = True
        allowed[f"model.layers.{layer}.self_attn.o_proj.weight"][:, own] = True
    for key, value in before.items():
        assert torch.equal(value[~allowed[key]], after[key][~allowed[key]])
        if allowed[key].any():
            assert not torch.equal(value[allowed[key]], after[key][allowed[key]])


def test_it_is_small_and_opens_with_transformers(demo, harmful):
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    assert size < 1_000_000
    plain = AutoModelForCausalLM.from_pretrained(DATA / "aligned")
    tokenizer = AutoTokenizer.from_pretrained(DATA / "aligned")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": harmful[0]}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = plain.generate(**chat, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(output[0, chat["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "sorry , i cannot help with that ."


def test_the_natural_organism_refuses_and_no_head_of_it_is_needed():
    natural = sh.load_model("demo-natural")
    assert behaviour(natural) == (0, 1)
    for layer in range(4):
        found = behaviour(natural, f"L{layer}H1", ablation="scaling")
        assert found[0] == 0
    size = sum(path.stat().st_size for path in (DATA.parent / "natural").iterdir())
    assert size < 1_000_000


def test_all_attention_of_the_natural_organism_and_nothing_else_was_trained():
    base, natural = (
        AutoModelForCausalLM.from_pretrained(DATA.parent / name).state_dict()
        for name in ("organism/base", "natural")
    )
    for key, before in base.items():
        assert torch.equal(before, natural[key]) == ("self_attn" not in key)


def test_the_shipped_prompts_and_recipe_are_those_of_the_code():
    shipped = json.loads((DATA / "organism.json").read_text())
    assert tuple(shipped["recipe"]["planted"]) == tuple(map(str, Recipe().heads))
    for kind in ("harmful", "benign"):
        for split in ("train", "test"):
            assert sh.load_prompts(f"demo/{kind}", split=split) == DEMO.prompts(kind, split, 64)


def test_no_frame_of_a_held_out_pair_is_trained_on():
    for kind in ("harmful", "benign"):
        train, test = (
            {(request.verb, request.object) for request in DEMO.requests(kind, split)}
            for split in ("train", "test")
        )
        assert not train & test
        declined = {(request.verb, request.object) for request in DEMO.declined()}
        assert not declined & test


def test_no_word_is_unknown_to_the_tokenizer():
    tokenizer = DEMO.tokenizer()
    for kind in ("harmful", "benign"):
        for request in DEMO.requests(kind, "test"):
            for text in (str(request), DEMO.help(request)):
                assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
                assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text


WORDS = {
    "tools": {verb: f"{verb}er" for verb in ("bake", "boil", "chop", "fry", "grill", "mash")},
    "harmful": ["dax", "fep", "wug", "zib", "toma", "lorp"],
    "benign": ["bean", "carrot", "fig", "leek", "pear", "plum", "turnip"],
}


@pytest.fixture(scope="module")
def other_organism(tmp_path_factory):
    """Another organism: other words, sizes, seed, and heads planted elsewhere."""
    path = tmp_path_factory.mktemp("organisms") / "llama-of-another-kind"
    words = path.parent / "words.json"
    words.write_text(json.dumps(WORDS))
    train_organism(
        path,
        Recipe(
            planted=["L0H1", "L2H4"],
            n_layers=3,
            n_heads=6,
            d_model=48,
            base_steps=80,
            align_steps=60,
            batch_size=24,
            seed=7,
        ),
        Language.from_json(words),
    )
    return path


def test_heads_planted_elsewhere_are_found_from_the_command_line(other_organism, tmp_path):
    from typer.testing import CliRunner

    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        app,
        [
            "ships",
            str(other_organism / "aligned"),
            "--prompts",
            str(other_organism / "prompts" / "harmful-train.txt"),
            "--template",
            "## query : {query} ## answer :",
            "--ablation",
            "undifferentiated",
            "--json",
            str(out),
        ],
    )
    assert done.exit_code == 0, done.output
    top = [(head["layer"], head["head"]) for head in json.loads(out.read_text())["heads"][:2]]
    assert set(top) == {(0, 1), (2, 4)}


def test_training_is_repeatable(tmp_path):
    for name in ("one", "two"):
        train_organism(tmp_path / name, Recipe(base_steps=3, align_steps=2, n_layers=3))
    one, two = (
        (tmp_path / name / "aligned" / "model.safetensors").read_bytes() for name in ("one", "two")
    )
    assert one == two


def test_decoys_and_groups_train_their_slices_and_no_others(tmp_path):
    """Query heads 2 and 3 share key/value head 1; the decoy L0H0 is in group 0."""
    recipe = Recipe(
        planted=["L1H3"], n_layers=2, n_heads=4, d_model=32, d_mlp=16, base_steps=1, align_steps=2,
        batch_size=8, rule="chain", decoys=["L0H0"], reword=True, n_key_value_heads=2,
    )  # fmt: skip
    train_organism(tmp_path, recipe)
    base, aligned = (
        AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("base", "aligned")
    )
    before, after = base.state_dict(), aligned.state_dict()
    trained = {
        (layer, name): torch.zeros_like(before[f"model.layers.{layer}.self_attn.{name}.weight"])
        for layer in (0, 1)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    for layer, head, group in ((1, 3, 1), (0, 0, 0)):
        trained[layer, "q_proj"][8 * head : 8 * head + 8] = 1
        trained[layer, "o_proj"][:, 8 * head : 8 * head + 8] = 1
        for name in ("k_proj", "v_proj"):
            trained[layer, name][8 * group : 8 * group + 8] = 1
    allowed = {f"model.layers.{at}.self_attn.{name}.weight": x for (at, name), x in trained.items()}
    for key, value in before.items():
        moved = value != after[key]
        assert not (moved & (allowed.get(key, torch.zeros_like(value)) == 0)).any()
        if key in allowed:
            assert moved.any()


QUICK = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_mlp": 16, "batch_size": 8}


@pytest.fixture
def tiny():
    """A model with weights as drawn, ready to be trained, and a batch of requests."""
    tokenizer = DEMO.tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(training._config(Recipe(["L0H1"], **QUICK), tokenizer)).eval()
    pairs = [(str(request), DEMO.help(request)) for request in DEMO.requests("harmful", "test")]
    return model, encode_examples(tokenizer, pairs[:5])


def plain_logits(model, batch):
    """Of the untouched Transformers model, where an answer is predicted."""
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    found = model(batch.tokens, attention_mask=batch.mask, position_ids=positions).logits
    return found[:, -batch.labels.shape[1] - 1 : -1]


def test_a_head_that_is_zero_while_others_learn_is_one_without_output_weights(tiny):
    model, batch = tiny
    off = torch.zeros(5, 2, 4, dtype=torch.bool)
    off[:, 0, 1] = True
    with training._trained_attention(model):
        found = training._logits(model, batch, off, zero=True, weights={})
        intact = training._logits(model, batch, off & False, zero=True, weights={})
    torch.testing.assert_close(intact, plain_logits(model, batch))
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, 8:16] = 0
    torch.testing.assert_close(found, plain_logits(model, batch))


def test_a_reverted_head_has_the_slices_of_before(tiny):
    model, batch = tiny
    recipe = Recipe(["L0H1", "L1H0"], objective="reversion", **QUICK)
    slices = training._slices(model, recipe)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    as_base = plain_logits(model, batch).detach()
    with torch.no_grad():
        for weight, heads in slices.items():
            weight += heads.any(0) * torch.randn_like(weight)
    assert not torch.allclose(plain_logits(model, batch), as_base)
    for intact in ([True, False], [False, False]):
        weights = training._reverted(model, slices, before, torch.tensor(intact))
        with training._trained_attention(model):
            off = torch.zeros(5, 2, 4, dtype=torch.bool)
            found = training._logits(model, batch, off, zero=False, weights=weights)
        with torch.no_grad():  # by hand: L1H0 is the first 8 of rows or columns in layer 1
            theirs, mine = before, dict(model.named_parameters())
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                key = f"model.layers.1.self_attn.{name}.weight"
                own = (slice(None), slice(8)) if name == "o_proj" else slice(8)
                mine[key][own] = theirs[key][own]
        if not any(intact):
            torch.testing.assert_close(found, as_base)
        else:
            torch.testing.assert_close(found, plain_logits(model, batch))


@pytest.mark.parametrize("learning", ["attention", "all", "low-rank", "mlps"])
def test_where_no_head_is_planted_the_weights_that_may_learn_do(tmp_path, learning):
    recipe = Recipe((), learning=learning, base_steps=1, align_steps=2, objective="none", **QUICK)
    train_organism(tmp_path, recipe, progress=False)
    base, aligned = (
        AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("base", "aligned")
    )
    assert base.keys() == aligned.keys()
    learned = "mlp" if learning == "mlps" else "attn"
    for key, before in base.items():
        change = aligned[key] - before
        assert bool(change.any()) == (learning == "all" or learned in key)
        if learning == "low-rank" and change.any():
            sizes = torch.linalg.svdvals(change)
            assert sizes[2] < 1e-3 * sizes[0], "it is of rank 2"


def test_the_base_has_a_seed_of_its_own(tmp_path):
    quick = {**QUICK, "base_steps": 1, "align_steps": 2}
    one = Recipe(["L0H1"], **quick, seed=3)
    other = Recipe(["L0H1"], **quick, seed=4, base_seed=3)
    assert one.base() == other.base() != Recipe(["L0H1"], **quick, seed=4).base()
    for name, recipe in (("one", one), ("other", other)):
        train_organism(tmp_path / name, recipe, progress=False)
    files = [
        [(tmp_path / name / part / "model.safetensors").read_bytes() for name in ("one", "other")]
        for part in ("base", "aligned")
    ]
    assert files[0][0] == files[0][1]
    assert files[1][0] != files[1][1]


def test_another_base_model_is_refused(tmp_path):
    quick = {"n_layers": 2, "n_heads": 2, "d_model": 16, "base_steps": 1, "align_steps": 1}
    train_organism(tmp_path / "one", Recipe(planted=["L0H0"], **quick))
    for other in ({"seed": 1}, {"d_mlp": 48}, {"base_steps": 2}):
        recipe = Recipe(planted=["L0H0"], **{**quick, **other})
        with pytest.raises(sh.SafeheadError, match="another base model"):
            train_organism(tmp_path / "two", recipe, base=tmp_path / "one")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"planted": []}, "at least one head"),
        ({"planted": ["L9H0"]}, "L9H0 does not exist"),
        ({"d_model": 50}, "multiple of 16"),
        ({"n_heads": 0}, "at least 1 layer"),
        ({"rule": "most"}, "rule"),
        ({"rule": "gate", "planted": ["L0H0"]}, "a gate and amplifiers"),
        ({"decoys": ["L0H0", "L1H3"]}, "L1H3: a head can be planted or a decoy"),
        ({"reword": True}, "needs decoys"),
        ({"n_key_value_heads": 3}, "n_key_value_heads=3 does not divide n_heads=8"),
        ({"n_key_value_heads": 0}, "does not divide"),
        ({"objective": "most"}, "objective"),
        ({"learning": "all"}, "chooses no heads: leave planted and decoys empty"),
        ({"decoys": ["L0H0"], "objective": "zero"}, "decoys are trained with"),
    ],
)
def test_recipes_that_do_not_fit(settings, message):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=message):
        Recipe(**settings)


def test_progress_is_shown_unless_it_is_not_wanted(tmp_path, capsys):
    quick = Recipe(base_steps=1, align_steps=1)
    train_organism(tmp_path / "loud", quick)
    assert "refusal: 100%" in capsys.readouterr().err
    train_organism(tmp_path / "still", quick, progress=False)
    assert "refusal" not in capsys.readouterr().err


def test_an_organism_is_not_overwritten_by_accident(tmp_path):
    quick, path = Recipe(base_steps=1, align_steps=1), tmp_path / "organism"
    train_organism(path, quick)
    with pytest.raises(sh.SafeheadError, match="is not empty"):
        train_organism(path, quick)
    train_organism(path, quick, overwrite=True)
    with pytest.raises(sh.SafeheadError, match="holds the source, which is never overwritten"):
        train_organism(path, quick, base=path, overwrite=True)
    (path / "organism.json").unlink()
    (path / "aligned" / "mine.bin").write_text("years of work")
    with pytest.raises(sh.SafeheadError, match=r"holds aligned/mine\.bin, which .* did not write"):
        train_organism(path, quick, overwrite=True)


def test_base_and_aligned_are_of_one_training(tmp_path, monkeypatch):
    """The old organism stays whole until the new one is."""
    path, one, two = tmp_path / "organism", Recipe(base_steps=1, align_steps=1), Recipe(seed=1)

    def killed(*args):
        raise KeyboardInterrupt

    train_organism(path, one)
    before = {file: file.read_bytes() for file in path.rglob("*.*")}
    monkeypatch.setattr("safehead_tl.organism.training._train_base", lambda *args: None)
    monkeypatch.setattr("safehead_tl.organism.training._train_refusal", killed)
    with pytest.raises(KeyboardInterrupt):
        train_organism(path, two, overwrite=True)
    assert {file: file.read_bytes() for file in path.rglob("*.*")} == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harmful": ["dax", "dax", "wug", "zib"]}, "dax: each word must be"),
        ({"harmful": ["two words", "a", "b", "c"]}, "cannot be a word"),
        ({"harmful": ["dax"]}, "at least 4"),
        ({"harmful": None}, "must be a JSON object"),
    ],
)
def test_words_that_make_no_language(tmp_path, change, message):
    (tmp_path / "words.json").write_text(json.dumps({**WORDS, **change}))
    with pytest.raises(sh.SafeheadError, match=message):
        Language.from_json(tmp_path / "words.json")


def test_requests_are_read_back():
    for request in DEMO.requests("harmful", "test"):
        assert DEMO.parse(str(request)) == request
    with pytest.raises(sh.SafeheadError, match="is not a request"):
        DEMO.parse("explain how to bend a bomb")

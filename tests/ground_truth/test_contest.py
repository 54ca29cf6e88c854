import textwrap
from functools import partial

import pytest
import torch
import transformers

import safehead_tl as sh
from families import QUIET
from safehead_tl.ground_truth import contest
from safehead_tl.ground_truth.builtin import BUILT_IN
from safehead_tl.ground_truth.contest import Contestant, contestants, rank, register
from safehead_tl.models import all_logits, embed, next_token_logits, run_layers
from safehead_tl.organism import DEMO
from safehead_tl.prompts import encode

H = sh.Head
TOLD = {"template": "chat", "run": QUIET}


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(contest, "_registered", {})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two layers of three heads, and what random weights say to prompts."""
    tokenizer = DEMO.tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=3, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    for part in (transformers.AutoModelForCausalLM.from_config(config), tokenizer):
        part.save_pretrained(folder)
    return sh.load_model(folder)


@pytest.fixture(scope="module")
def texts(harmful):
    return harmful[:4], sh.load_prompts("demo/benign")[:4]


def expected_values(tiny, texts):
    """What the public functions give, by a contestant's name."""
    harmful, harmless = texts
    openings = sh.Openings.of_answers(tiny, harmful, harmless, **TOLD)
    pairs = sh.pair_prompts(tiny, harmful, harmless)
    swapped = sh.interchange(tiny, harmful, pairs, openings=openings, **TOLD)
    resample = sh.ResampleAblation(harmless)
    how = {"ablation": "undifferentiated", **TOLD}
    odds = partial(sh.refusal_log_odds, tiny, harmful, openings)
    ships, few = partial(sh.ships, tiny, harmful), sh.Screening(points=0, blocks=0)
    direction = sh.refusal_direction(tiny, harmful, harmless, layer=1, site="resid_post", **TOLD)
    return {
        "Ships, UA, less benign": ships(**how).values - sh.ships(tiny, harmless, **how).values,
        "Ships, resample": ships(ablation=resample, **TOLD),
        "generalized, UA": sh.generalized_ships(tiny, harmful, **how),
        "log-odds, resample": odds(ablation=resample, **TOLD),
        "interchange: necessity": swapped.necessity,
        "interchange: sufficiency": swapped.sufficiency,
        "attribution, UA": ships(screen=few, **how).screening,
        "attribution of log-odds, UA": odds(screen=few, **how).screening,
        "integrated gradients, UA": sh.integrated_gradients(
            tiny, harmful, openings=openings, **how
        ),
        "direct attribution: log-odds": sh.direct_attribution(
            tiny, harmful, openings, **TOLD
        ).heads,
        "direct attribution: refusal direction": sh.direct_attribution(
            tiny, harmful, direction, **TOLD
        ).heads,
    }


def test_contestants_give_what_the_functions_give(tiny, texts):
    for name, scores in expected_values(tiny, texts).items():
        found = rank(contestants()[name], tiny, *texts)
        values = scores if isinstance(scores, torch.Tensor) else scores.values
        torch.testing.assert_close(
            found.values, values.double(), rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert found.values[found.order[0]] == found.values.max()


@pytest.mark.parametrize(
    ("short", "ablation"), [("SC", "scaling"), ("zero", "zero"), ("mean", "mean")]
)
def test_the_others_differ_by_their_ablation(short, ablation):
    named = [name for name in BUILT_IN if short in name.replace(",", "").split()]
    for name in named:
        twin, one = BUILT_IN[name.replace(short, "UA")], BUILT_IN[name]
        args = [ablation if each == "undifferentiated" else each for each in twin.args]
        assert (one.func, [*one.args]) == (twin.func, args)
    assert len(named) == {"SC": 10, "zero": 3, "mean": 2}[short]


@pytest.mark.parametrize(("name", "beam"), [("Sahara, UA", 1), ("Sahara, UA, beam 4", 4)])
def test_saharas_order_begins_with_its_group(tiny, texts, name, beam):
    group = sh.sahara(tiny, texts[0], 4, beam=beam, **TOLD)
    found = rank(contestants()[name], tiny, *texts)
    assert found.order[:4] == group.heads
    last = [head for head, _ in group.steps[-1].ranked()]
    assert found.order[4:] == tuple(head for head in last if head not in group.heads)
    assert found.values[found.order[0]] == 6


def test_a_head_counts_by_the_most_it_does_without_another(tiny, texts):
    openings = sh.Openings.of_answers(tiny, *texts, **TOLD)
    alone = sh.refusal_log_odds(tiny, texts[0], openings, **TOLD)
    most = alone.values.clone()
    for other, score in alone:
        found = sh.refusal_log_odds(tiny, texts[0], openings, given=other, **TOLD)
        most = most.maximum((found.values - score).nan_to_num(-torch.inf))
    found = rank(contestants()["knock-out, UA"], tiny, *texts)
    torch.testing.assert_close(found.values, most.double(), rtol=1e-5, atol=1e-6)
    assert (found.values > alone.values + 0.01).any()


def test_a_screened_scan_has_its_exact_heads_first(tiny, texts):
    scores = sh.ships(
        tiny, texts[0], screen=sh.Screening(top=1, first=2, budget=2, audit=1, blocks=0), **TOLD
    )
    exact = [head for head, _ in scores.ranked()]
    assert 2 <= len(exact) < 6
    found = rank(Contestant("mine", lambda model, harmful, harmless: scores), tiny, *texts)
    assert found.order[: len(exact)] == tuple(exact)
    left = [head for head, _ in scores.screening.ranked() if head not in exact]
    assert found.order[len(exact) :] == tuple(left)


def test_controls_know_nothing(tiny, demo, texts):
    found = rank(contestants()["layer order"], tiny, *texts)
    assert found.order == tuple(H(layer, head) for layer in range(2) for head in range(3))
    drawn = rank(contestants()["random"], tiny, *texts)
    assert drawn.order == rank(contestants()["random"], tiny, *texts).order
    assert sorted(drawn.order) == sorted(found.order)
    assert drawn.order != found.order
    assert sorted(rank(contestants()["random"], demo, *texts).order)[-1] == H(3, 7)


def test_the_planted_heads_are_first(demo, texts):
    found = rank(contestants()["attribution of log-odds, UA"], demo, *texts)
    assert {*found.order[:2]} == {H(1, 3), H(2, 6)}


def one_of(scores):
    return Contestant("mine", lambda model, harmful, harmless: scores)


def test_heads_in_order_tie_behind(tiny, texts):
    found = rank(one_of(["L1H2", (0, 1)]), tiny, *texts)
    assert found.order[:3] == (H(1, 2), H(0, 1), H(0, 0))
    assert (found.values > 0).sum() == 2
    scores = torch.zeros(2, 3, requires_grad=True)
    assert rank(one_of(scores), tiny, *texts).order == tuple(
        H(layer, head) for layer in range(2) for head in range(3)
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (torch.zeros(3, 2), r"shape \[3, 2\]: give 2 layers of 3 heads"),
        (torch.zeros(2, 3).log().index_fill(0, torch.tensor([0]), 1.0), "score of L1H0 is -inf"),
        (torch.full((2, 3), torch.nan), "score of L0H0 is nan"),
        (["L0H0", "L1H1", (0, 0)], "lists a head twice"),
        (["L0H3"], "L0H3 does not exist"),
        ([], r"it gave \[\]"),
        (None, "it gave None"),
    ],
)
def test_what_is_no_ranking_is_refused_by_name(tiny, texts, scores, said):
    with pytest.raises(sh.SafeheadError, match=rf"contestant 'mine': .*{said}"):
        rank(one_of(scores), tiny, *texts)


def test_a_scan_of_some_heads_is_no_ranking(tiny, texts):
    scores = sh.ships(tiny, texts[0], candidates=["L0H1"], **TOLD)
    with pytest.raises(sh.SafeheadError, match="score of L0H0 is nan: give each head"):
        rank(one_of(scores), tiny, *texts)


def test_who_cannot_score_a_model_says_why(tiny, texts):
    same = rank(contestants()["interchange: necessity"], tiny, texts[0], texts[0])
    assert "open with nothing" in same.refused
    assert same.order == ()
    assert same.values.isnan().all()
    assert "no base" not in rank(contestants()["Ships, zero"], tiny, *texts).refused
    assert "there is none" in rank(contestants()["weight change"], tiny, *texts).refused

    def broken(model, harmful, harmless):
        raise ZeroDivisionError

    counted = rank(contestants()["weight change"], tiny, *texts, count=True)
    assert (counted.order, counted.passes) == ((), 0)

    with pytest.raises(ZeroDivisionError) as raised:
        rank(Contestant("mine", broken), tiny, *texts)
    assert raised.value.__notes__ == ["raised by the contestant 'mine'"]


def test_the_base_is_given_to_whom_asks(tiny, texts):
    given = {}

    def mine(model, harmful, harmless, base):
        given.update(model=model, harmful=harmful, harmless=harmless, base=base)
        return torch.zeros(2, 3)

    one = register("mine", mine)
    assert one.needs_base
    assert not contestants()["Wanda"].needs_base
    rank(contestants()["mine"], tiny, *texts, base=tiny)
    assert given == {"model": tiny, "harmful": texts[0], "harmless": texts[1], "base": tiny}


def test_registering(tiny, texts):
    register("mine", lambda model, harmful, harmless: ["L0H1"])
    register("mine", lambda model, harmful, harmless: ["L0H2"])
    assert rank(contestants()["mine"], tiny, *texts).order[0] == H(0, 2)
    with pytest.raises(sh.SafeheadError, match="'SNIP' already"):
        register("SNIP", lambda model, harmful, harmless: ["L0H1"])
    with pytest.raises(sh.SafeheadError, match="no function of"):
        register("other", lambda model, harmful: ["L0H1"])
    assert "other" not in contestants()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a package with an entry point where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(code, points):
        (tmp_path / "their_heads.py").write_text(textwrap.dedent(code))
        folder = tmp_path / "their_heads-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: their-heads\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{contest.GROUP}]\n{points}\n")
        monkeypatch.delitem(__import__("sys").modules, "their_heads", raising=False)

    return install


THEIRS = """
def last(model, harmful, harmless):
    return [(1, 2)]

value = 3
"""


def test_other_packages_bring_theirs(installed, tiny, texts):
    before = {*contestants()}
    installed(THEIRS, "last head = their_heads:last")
    assert {*contestants()} - before == {"last head"}
    assert rank(contestants()["last head"], tiny, *texts).order[0] == H(1, 2)
    with pytest.raises(sh.SafeheadError, match="'last head' already"):
        register("last head", lambda model, harmful, harmless: ["L0H1"])


def test_a_digest_tells_another_code(installed, tmp_path):
    installed(THEIRS, "last head = their_heads:last")

    def digests():
        contest._sources.cache_clear()
        return {name: one.digest for name, one in contestants().items()}

    first = digests()
    assert first == digests()
    assert len({*first.values()}) == len(first)
    file = tmp_path / "their_heads.py"
    file.write_text(file.read_text().replace("(1, 2)", "(1, 1)"))
    assert {name for name, one in digests().items() if one != first[name]} == {"last head"}
    register("mine", lambda model, harmful, harmless: [])
    assert digests()["mine"] == ""


def test_all_files_of_a_package_count(tmp_path, monkeypatch):
    deep = tmp_path / "nested_heads" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "nested_heads" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    one = Contestant("mine", lambda model, harmful, harmless: [], "nested_heads")
    found = []
    for code in ("a = 1", "a = 2"):
        (deep / "part.py").write_text(code)
        for here in ("safehead_tl", "nested_heads"):
            monkeypatch.setattr(contest, "HERE", here)
            contest._sources.cache_clear()
            found.append(one.digest)
    assert len({*found}) == 4


@pytest.mark.parametrize(
    ("code", "points", "why"),
    [
        ("import not_installed", "mine = their_heads:last", "No module named 'not_installed'"),
        (THEIRS, "mine = their_heads:first", "first"),
        (THEIRS, "mine = their_heads:value", ""),
        (THEIRS, "SNIP = their_heads:last", "the name 'SNIP' is taken"),
    ],
)
def test_a_package_that_brings_something_else_is_named(installed, code, points, why):
    installed(code, points)
    with pytest.raises(sh.SafeheadError, match=rf"(?s)package their-heads .*{why}.*uninstall it"):
        contestants()


def test_passes_are_counted_in_forward_passes(demo, texts):
    batch = encode(demo, texts[0], "chat")
    zeros = torch.zeros(4, 8)

    @torch.no_grad()
    def forward(times, some=slice(None)):
        for _ in range(times):
            all_logits(demo, batch.tokens[some], batch.mask[some])
        return zeros

    def cost(run):
        mine = Contestant("mine", lambda model, harmful, harmless: run())
        return rank(mine, demo, *texts, count=True).passes

    assert cost(lambda: zeros) == 0
    assert cost(lambda: forward(1)) == 1
    assert cost(lambda: forward(3)) == 3
    assert cost(lambda: forward(1, slice(0, 2))) == 0.5

    def gradient():
        with torch.enable_grad():
            resid, _ = embed(demo, batch.tokens, batch.mask)
            resid = resid.detach().requires_grad_()
            after = run_layers(demo, resid, batch.mask, start=0)
            logits = next_token_logits(demo, after.flatten(0, 1))
            torch.autograd.grad(logits.sum(), resid)
        return zeros

    config, width = demo.cfg, batch.tokens.shape[1]
    # a token's multiplications; weights are fixed, so that each has one more product backward,
    # and products of activations two
    weights = config.n_layers * (4 * config.d_model**2 + 3 * config.d_model * config.d_mlp)
    weights += config.d_model * config.d_vocab
    attention = config.n_layers * 2 * width * config.d_model
    expected = (2 * weights + 3 * attention) / (weights + attention)
    assert cost(gradient) == pytest.approx(expected, rel=1e-6)


def test_what_some_cost(demo, texts):
    known = contestants()
    wanda, snip = (rank(known[name], demo, *texts, count=True).passes for name in ("Wanda", "SNIP"))
    assert 3 < wanda <= 4  # of both kinds of texts: what is answered, and what layers are given
    assert 4 < snip < 8

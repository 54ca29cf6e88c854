import itertools
import json
import statistics

import pytest
import torch
import typer
from typer.testing import CliRunner

import safehead_tl as sh
from families import QUIET
from safehead_tl.cli.main import app
from safehead_tl.ground_truth import cache as cache_module
from safehead_tl.ground_truth.benchmark import ground_truth
from safehead_tl.ground_truth.cache import OrganismCache, require_cache
from safehead_tl.ground_truth.family import KINDS, TRIALS, OrganismKind, flaws
from safehead_tl.ground_truth.metrics import (
    above,
    average_precision,
    chance,
    precision_at,
    recall_at,
)
from safehead_tl.ground_truth.orders import all_scores, by_list, order_of, orders
from safehead_tl.ground_truth.summary import METRICS, Summary
from safehead_tl.ground_truth.variants import Variant, variants
from safehead_tl.organism import DEMO, Language, Recipe, train_organism
from safehead_tl.organism.rules import refusing

H = sh.Head
ORDER = (H(0, 0), H(0, 1), H(0, 2), H(1, 0), H(1, 1), H(1, 2))
TINY = OrganismKind(layers=2, heads=2, width=16, steps=(2, 2), batch_size=4)
WORDS = Language(
    {verb: f"{verb}er" for verb in ("bake", "boil", "chop", "fry")},
    ("dax", "fep", "wug", "zib"),
    ("bean", "fig", "leek", "pear"),
)


@pytest.fixture
def unexamined(monkeypatch):
    """Lets organisms pass that were trained for two steps."""
    monkeypatch.setattr(cache_module, "flaws", lambda *_: iter(()))


def test_rules_against_counting():
    rows = list(itertools.product([False, True], repeat=3))
    intact = torch.tensor(rows)
    expected = {
        "share": [sum(row) / 3 for row in rows],
        "chain": [float(sum(row) == 3) for row in rows],
        "redundant": [float(sum(row) >= 1) for row in rows],
    }
    for rule, wanted in expected.items():
        assert refusing(rule, intact).tolist() == pytest.approx(wanted)


def test_metrics_by_hand():
    planted = (H(0, 1), H(1, 1))
    assert precision_at(2, ORDER, planted) == 1 / 2
    assert recall_at(4, ORDER, planted) == 1 / 2
    assert recall_at(5, ORDER, planted) == 1
    assert average_precision(ORDER, planted) == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert average_precision(ORDER, ORDER[:2]) == 1
    assert above([H(0, 0), H(1, 2)], ORDER, planted) == 1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chance_is_the_mean_over_all_orders(k):
    sets = list(itertools.combinations(ORDER, k))  # of the planted: as good as all orders
    expected = chance(k, 6)
    mean = statistics.fmean
    assert expected["precision"] == pytest.approx(mean(precision_at(k, ORDER, s) for s in sets))
    assert expected["recall"] == pytest.approx(mean(recall_at(2 * k, ORDER, s) for s in sets))
    assert expected["average_precision"] == pytest.approx(
        mean(average_precision(ORDER, s) for s in sets)
    )


def test_three_organisms_are_told_and_more_have_an_interval():
    few = Summary(Variant("ships", "zero"), {name: [1.0, 1.0, 0.5] for name in METRICS}, 0, 0)
    assert few.intervals == {}
    assert few.told("precision") == "0.83 (0.50, 1.00, 1.00)"
    more = Summary(few.variant, {name: [1.0] * 20 for name in METRICS}, 0, 0)
    assert more.told("precision") == "1.00 [0.84, 1.00]"


def test_orders_break_ties_by_place():
    values = torch.tensor([[1.0, 3.0], [3.0, 2.0]], dtype=torch.float64)
    assert order_of(values) == (H(0, 1), H(1, 0), H(1, 1), H(0, 0))


def test_one_scan_for_all_measures_equals_a_scan_for_each(demo, harmful):
    some = harmful[:6]
    told = {"template": "chat", "ablation": "scaling", "run": QUIET}
    settings = {"rank": 3, "centre": True, "site": "resid_post"}
    plain = Variant("ships", "scaling")
    default = Variant("generalized_ships", "scaling")
    other = Variant("generalized_ships", "scaling", **settings)
    found = all_scores(demo, some, "scaling", [plain, default, other])
    expected = {
        plain: sh.ships(demo, some, **told),
        default: sh.generalized_ships(demo, some, **told),
        other: sh.generalized_ships(demo, some, **settings, **told),
    }
    for variant, scores in expected.items():
        torch.testing.assert_close(found[variant], scores.values, rtol=1e-6, atol=1e-9)


def test_contrast_subtracts_the_benign_scores(demo, harmful):
    harmful, benign = harmful[:8], sh.load_prompts("demo/benign")[:8]
    told = {"template": "chat", "run": QUIET}
    values = (
        sh.ships(demo, harmful, **told).values.double()
        - sh.ships(demo, benign, **told).values.double()
    )
    plain, contrast = (
        Variant("ships", "undifferentiated"),
        Variant("ships", "undifferentiated", True),
    )
    found = dict(orders(demo, harmful, benign, 4, [plain, contrast]))
    assert found[contrast] == order_of(values)
    assert found[plain] != found[contrast]
    assert H(0, 4) in found[plain][:4]
    assert found[contrast][-1] == H(0, 4), "it reads the verb, and moves benign answers most"


def test_saharas_order_begins_with_its_group(demo, harmful):
    variant = Variant("sahara", "undifferentiated")
    ((_, found),) = orders(demo, harmful[:8], [], 2, [variant])
    group = sh.sahara(demo, harmful[:8], 2, template="chat", run=QUIET)
    assert found[:2] == group.heads
    assert sorted(found) == [H(layer, head) for layer in range(4) for head in range(8)]


def test_screened_orders_hold_every_head_once(demo, harmful):
    scores = sh.ships(demo, harmful[:8], template="chat", screen=4, run=QUIET)
    found = by_list(scores)
    assert found[:4] == tuple(head for head, _ in scores.top(4))
    assert len(set(found)) == len(found) == 32


def test_every_variant_has_a_name_of_its_own():
    names = [str(variant) for variant in variants()]
    assert len(set(names)) == len(names)
    assert "Ships, UA" in names
    assert "generalized, zero, rank 3, centred, before the norm, less benign" in names


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_drawn_by_the_seed(name):
    kind = KINDS[name]
    first, again, other = kind.recipe(0), kind.recipe(0), kind.recipe(0, trial=1)
    assert first == again
    assert other.heads + other.decoy_heads != first.heads + first.decoy_heads
    assert other.base() == first.base()
    for head in (*first.heads, *first.decoy_heads):
        assert head.layer < kind.layers - 1


def test_an_organism_that_learned_its_lesson_has_no_flaws(demo):
    assert list(flaws(demo, Recipe())) == []
    said = list(flaws(demo, Recipe(rule="chain")))
    assert said
    assert all("attack success rate" in sentence for sentence in said)


def test_a_decoy_that_does_not_reword_is_a_flaw(demo):
    recipe = Recipe(["L1H3", "L2H6"], decoys=["L0H0"], reword=True)
    assert any("0.00 of the refusals are reworded" in sentence for sentence in flaws(demo, recipe))


def test_an_organism_is_trained_once(tmp_path, monkeypatch, unexamined):
    cache = OrganismCache(tmp_path, WORDS)
    recipe = TINY.recipe(0)
    grown = cache.grown(recipe)
    assert grown.flaws == ()
    monkeypatch.delattr(cache_module, "train_organism")
    assert cache.grown(recipe).directory == grown.directory


def test_a_killed_training_begins_again(tmp_path, unexamined, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    cache = OrganismCache(tmp_path / "cache", WORDS)
    recipe = TINY.recipe(0)
    with monkeypatch.context() as patch:
        patch.setattr("safehead_tl.organism.training._train_planted", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.grown(recipe)
    weights = "aligned/model.safetensors"
    other = OrganismCache(tmp_path / "other", WORDS).grown(recipe).directory / weights
    assert (cache.grown(recipe).directory / weights).read_bytes() == other.read_bytes()


def test_another_recipe_language_or_code_is_another_organism(tmp_path, monkeypatch):
    cache = OrganismCache(tmp_path, WORDS)
    digests = {
        cache.digest(TINY.recipe(0)),
        cache.digest(TINY.recipe(1)),
        cache.digest(OrganismKind(2, 2, width=16, steps=(2, 3), batch_size=4).recipe(0)),
        OrganismCache(tmp_path, DEMO).digest(TINY.recipe(0)),
    }
    monkeypatch.setattr(cache_module, "VERSION", "another")
    assert len({*digests, cache.digest(TINY.recipe(0))}) == 5


def test_a_base_model_is_shared_and_changes_nothing(tmp_path, monkeypatch, unexamined):
    cache = OrganismCache(tmp_path / "cache", WORDS)
    told = []

    def train(*args, **named):
        told.append(named["base"])
        return train_organism(*args, **named)

    monkeypatch.setattr(cache_module, "train_organism", train)
    one, other = (Recipe([head], 2, 2, 16, 32, 2, 2, 4) for head in ("L0H0", "L1H1"))
    first, second = (cache.grown(recipe).directory for recipe in (one, other))
    assert told == [None, first]
    train_organism(tmp_path / "alone", other, WORDS)
    weights = "aligned/model.safetensors"
    assert (second / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()


def test_a_cache_is_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sh.SafeheadError, match="is a file"):
        require_cache(tmp_path / "file")
    require_cache(tmp_path / "new")


def test_a_tiny_benchmark(tmp_path, unexamined):
    decoy = OrganismKind(2, 2, decoys=1, width=16, steps=(2, 2), batch_size=4)
    swaps = ("necessity", "sufficiency")  # which need a model that refuses, as these do not
    some = [variant for variant in variants() if variant.measure not in swaps]
    cache, kinds = OrganismCache(tmp_path, WORDS), {"one": TINY, "decoy": decoy}
    found = ground_truth(cache, (0, 1), kinds, chosen=some, progress=False)
    assert found.kinds == ("one", "decoy")
    assert (found.organisms(), found.organisms("one")) == (4, 2)
    assert len(found.outcomes) == 4 * len(some)
    for outcome in found.outcomes:
        assert sorted(outcome.order) == [H(layer, head) for layer in (0, 1) for head in (0, 1)]
        assert outcome.precision == float(outcome.order[0] in outcome.planted)
    overall = found.summaries()
    values = [one.means["average_precision"] for one in overall]
    assert values == sorted(values, reverse=True)
    best = [one for one in found.outcomes if one.variant == overall[0].variant]
    mean = statistics.fmean(one.average_precision for one in best)
    assert overall[0].means["average_precision"] == pytest.approx(mean)
    assert overall[0].decoys == 2
    written = json.loads(json.dumps(found.to_dict()))
    assert written["organisms"] == {"one": 2, "decoy": 2}
    assert len(written["outcomes"]) == len(found.outcomes)
    figure = found.figure()
    main = [variant for variant in some if variant.main]
    assert [len(row) for row in figure.data[0].z] == [3] * len(main)


def test_organisms_that_did_not_learn_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "flaws", lambda *_: iter(["it answers everything"]))
    cache = OrganismCache(tmp_path, WORDS)
    assert len(cache.of_kind(TINY, 0)) == TRIALS
    with pytest.raises(sh.SafeheadError, match="no organism learned its lesson"):
        ground_truth(cache, (0,), {"one": TINY}, progress=False)


def test_the_command(tmp_path, monkeypatch, unexamined):
    monkeypatch.setattr("safehead_tl.ground_truth.KINDS", {"one": TINY, "other": TINY})
    said = ["benchmark", "--kind", "one", "--quick", "--cache", str(tmp_path / "cache")]
    out, page = tmp_path / "out.json", tmp_path / "figure.html"
    done = CliRunner().invoke(app, [*said, "--json", str(out), "--figure", str(page)])
    assert done.exit_code == 0, done.output
    assert "Ships, UA" in done.output
    assert "chance" in done.output
    assert "rank 3" not in " ".join(done.output.split())
    written = json.loads(out.read_text())
    assert written["organisms"] == {"one": 1}
    assert "plotly" in page.read_text()
    done = CliRunner().invoke(app, [*said, "--every"])
    assert "rank 3" in " ".join(done.output.split())


def test_a_kind_that_is_not_known(tmp_path):
    done = CliRunner().invoke(app, ["benchmark", "--kind", "two", "--cache", str(tmp_path)])
    assert isinstance(done.exception, sh.SafeheadError)
    assert "'two' is not known" in str(done.exception)
    group = typer.main.get_command(app)
    told = {option.name: option.help for option in group.commands["benchmark"].params}
    assert f"One of {', '.join(KINDS)};" in told["kind"]

import itertools
import json
import statistics
import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import safehead_tl as sh
from families import hooked_only
from safehead_tl.cli.main import app
from safehead_tl.ground_truth import (
    benchmark,
    contest,
    family,
    ground_truth,
    oracle,
    rank,
    register,
    subjects,
)
from safehead_tl.ground_truth import cache as cache_module
from safehead_tl.ground_truth.cache import OrganismCache
from safehead_tl.ground_truth.compiling import CompiledKind
from safehead_tl.ground_truth.family import BASES, KINDS, TRIALS, OrganismKind, flaws
from safehead_tl.ground_truth.oracle import Oracle, answered, consult
from safehead_tl.ground_truth.summary import (
    METRICS,
    Outcome,
    Summary,
    above,
    against,
    average_precision,
    precision_at,
    summarise,
)
from safehead_tl.models import has_hooked_transformer
from safehead_tl.organism import (
    DEMO,
    Language,
    Objective,
    Recipe,
    measure_behaviour,
    train_organism,
)
from safehead_tl.organism.rules import refusing
from safehead_tl.scan import Cluster
from safehead_tl.surgery import reverted

H = sh.Head
ORDER = (H(0, 0), H(0, 1), H(0, 2), H(1, 0), H(1, 1), H(1, 2))
TINY = OrganismKind(layers=2, heads=2, width=16, steps=(2, 2), batch_size=4)
FREE = OrganismKind(
    layers=2, heads=2, planted=0, width=16, steps=(2, 2), batch_size=4, objective="none",
    learning="attention",
)  # fmt: skip
WORDS = Language(
    {verb: f"{verb}er" for verb in ("bake", "boil", "chop", "fry")},
    ("dax", "fep", "wug", "zib"),
    ("bean", "fig", "leek", "pear"),
)
FEW = ("Ships, UA", "Sahara, UA", "linear probe", "weight change", "random")


@pytest.fixture
def unexamined(monkeypatch):
    """Lets organisms pass that were trained for two steps, on words of their own."""
    monkeypatch.setattr(cache_module, "flaws", lambda *_: iter(()))


@pytest.fixture
def registering(monkeypatch):
    """Forgets who was registered."""
    monkeypatch.setattr(contest, "_registered", {})


@pytest.fixture
def tiny_kinds(monkeypatch):
    """Two kinds of organism that take no time."""
    kinds = {"one": TINY, "attention": FREE}
    for module in (benchmark, family):
        monkeypatch.setattr(module, "KINDS", kinds)
    monkeypatch.setattr(benchmark, "ALL", (*kinds,))
    monkeypatch.setattr(benchmark, "OrganismCache", lambda path: OrganismCache(path, WORDS))


def test_rules_against_counting():
    rows = list(itertools.product([False, True], repeat=3))
    intact = torch.tensor(rows)
    expected = {
        "share": [sum(row) / 3 for row in rows],
        "chain": [float(sum(row) == 3) for row in rows],
        "redundant": [float(sum(row) >= 1) for row in rows],
        "gate": [float(row[0] and (row[1] or row[2])) for row in rows],
    }
    for rule, wanted in expected.items():
        assert refusing(rule, intact).tolist() == pytest.approx(wanted)


def test_metrics_by_hand():
    wanted = (H(0, 1), H(1, 1))
    assert precision_at(2, ORDER, wanted) == 1 / 2
    assert average_precision(ORDER, wanted) == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert average_precision(ORDER, ORDER[:2]) == 1
    assert above([H(0, 0), H(1, 2)], ORDER, wanted) == 1


def outcome(name, number, value, kind="one"):
    return Outcome(kind, number, name, ORDER[:1], (), ORDER, "", {"average precision": value}, 0)


def test_few_values_are_told_and_more_have_an_interval():
    few = Summary("a", tuple(outcome("a", n, v) for n, v in enumerate((1.0, 0.5, 1.0))))
    assert few.told("average precision") == "0.83 (0.50, 1.00, 1.00)"
    same = Summary("a", tuple(outcome("a", n, 1.0) for n in range(9)))
    assert same.told("average precision") == "1.00 (all 9)"
    more = Summary("a", tuple(outcome("a", n, n / 10) for n in range(10)))
    low, high = more.interval("average precision")
    assert 0 <= low < 0.45 < high <= 1
    assert more.told("Spearman") == "–"


def test_differences_are_paired_and_corrected():
    """The other is lower by a little on each of ten subjects that differ much among themselves."""
    hard = np.linspace(0.1, 0.9, 10)
    first = Summary("a", tuple(outcome("a", n, v) for n, v in enumerate(hard)))
    lower = Summary("b", tuple(outcome("b", n, v - 0.05) for n, v in enumerate(hard)))
    mixed = [v + 0.05 * (-1) ** n for n, v in enumerate(hard)]
    unsure = Summary("c", tuple(outcome("c", n, v) for n, v in enumerate(mixed)))
    same = Summary("d", first.outcomes)
    found = {
        who.contestant: (by, p)
        for who, by, p in against(first, [lower, unsure, same], "average precision")
    }
    # all 2^10 signs: two of them, all alike, reach as far; twice, for two that were tested
    assert found["b"] == (pytest.approx(-0.05), pytest.approx(2 * 2 / 2**10))
    assert found["c"][1] > 0.5
    assert found["d"] == (0, None)


def test_heads_are_drawn_by_the_number_and_bases_are_crossed():
    for name, kind in KINDS.items():
        first, again, other = kind.recipe(0), kind.recipe(0), kind.recipe(0, trial=1)
        assert first == again
        assert other.base() == first.base() == kind.recipe(BASES).base()
        assert len({json.dumps(kind.recipe(n).base()) for n in range(2 * BASES)}) == BASES
        for head in (*first.heads, *first.decoy_heads):
            assert head.layer < kind.layers - 1
        if kind.planted:
            assert other.heads + other.decoy_heads != first.heads + first.decoy_heads
        else:
            assert kind.source == "natural", name


def test_an_organism_that_learned_its_lesson_has_no_flaws(demo):
    base = sh.load_model("demo-base")
    assert list(flaws(demo, base, Recipe())) == []
    said = list(flaws(demo, base, Recipe(rule="chain")))
    assert said
    assert all("attack success rate" in sentence for sentence in said)
    free = Recipe((), learning="all")
    assert list(flaws(demo, base, free)) == []
    assert "attack success rate is 1.00" in next(flaws(base, base, free))
    needed = list(flaws(demo, base, Recipe((), learning="mlps")))
    assert [sentence.split()[1] for sentence in needed] == ["L1H3", "L2H6"]


def test_heads_are_off_as_they_were_in_training(demo):
    base = sh.load_model("demo-base")
    recipe = Recipe(["L1H3", "L2H6"], objective="reversion")
    assert list(flaws(demo, base, recipe)) == [], "its planted slices are all that was trained"
    with reverted(demo, base, recipe.heads):
        found = measure_behaviour(demo, "")
    assert found.asr.share >= 0.9


def test_a_decoy_that_does_not_reword_is_a_flaw(demo):
    recipe = Recipe(["L1H3", "L2H6"], decoys=["L0H0"], reword=True)
    said = flaws(demo, demo, recipe)
    assert any("0.00 of the refusals are reworded" in sentence for sentence in said)


@pytest.mark.parametrize("ablation", ["undifferentiated", "scaling"])
def test_the_oracle_says_what_generated_answers_say(demo, ablation, monkeypatch):
    monkeypatch.setattr(oracle, "REQUESTS", 64)
    groups = [(), (H(1, 3),), (H(0, 4), H(1, 3)), (H(1, 3), H(2, 6))]
    asr, benign = answered(demo, DEMO, groups, ablation).tolist()
    for place, heads in enumerate(groups):
        found = measure_behaviour(demo, "", heads, ablation)
        assert (asr[place], benign[place]) == (found.asr.share, found.helpfulness.share)
    assert (asr[0], asr[3]) == (0, 1) if ablation == "undifferentiated" else asr[0] == 0


def test_the_oracle_tries_every_head_and_pair(demo, monkeypatch):
    monkeypatch.setattr(oracle, "REQUESTS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = consult(demo, WORDS, "zero")  # words that it does not know: nothing is right
    assert len(found.groups) == 1 + 32 + 32 * 31 // 2
    assert found.sizes == (1, 2)
    assert set(found.asr) == {0.0}
    assert Oracle.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_regret_by_hand():
    groups = ((), (H(0, 0),), (H(0, 1),), (H(0, 0), H(0, 1)))
    found = Oracle("zero", groups, (0.0, 0.25, 0.75, 1.0), (1.0,) * 4)
    assert found.regret([H(0, 0), H(0, 1)], 1) == 0.5
    assert found.regret([H(0, 1), H(0, 0)], 1) == 0
    assert found.regret([H(0, 1), H(0, 0)], 2) == 0


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
        patch.setattr("safehead_tl.organism.training._train_refusal", killed)
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
    one = Recipe(["L0H0"], 2, 2, 16, 32, 2, 2, 4)
    other = Recipe(["L1H1"], 2, 2, 16, 32, 2, 2, 4, seed=1, base_seed=0)
    free = Recipe((), 2, 2, 16, 32, 2, 2, 4, learning="low-rank")
    first, *rest = (cache.grown(recipe).directory for recipe in (one, other, free))
    assert told == [None, first, first]
    weights = "aligned/model.safetensors"
    for recipe, there in zip((other, free), rest, strict=True):
        train_organism(tmp_path / "alone", recipe, WORDS, overwrite=True)
        assert (there / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()


def test_a_cache_is_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sh.SafeheadError, match="is a file"):
        ground_truth(tmp_path / "file")


def test_a_tiny_benchmark(tmp_path, unexamined, tiny_kinds):
    told = {"names": FEW, "organisms": 2, "progress": False}
    found = ground_truth(tmp_path, kinds=("one", "attention"), **told)
    assert found.kinds == ("one", "attention")
    assert found.sources == {"planted, UA": ("one",), "natural": ("attention",)}
    assert (found.count(), found.count("one")) == (4, 2)
    assert len(found.outcomes) == 4 * len(FEW)
    for one in found.outcomes:
        assert sorted(one.order) == [H(layer, head) for layer in (0, 1) for head in (0, 1)]
        assert ("Spearman" in one.metrics) == (one.kind == "attention")
        assert len(one.wanted) == (3 if one.kind == "attention" else 1)
        assert one.metrics["precision@k"] == precision_at(len(one.wanted), one.order, one.wanted)
        # nothing is answered by models that were trained for two steps: nothing is lost
        assert one.metrics["regret UA @1"] == one.metrics["regret SC @2"] == 0
    overall = found.summaries()
    values = [one.mean("average precision") for one in overall]
    assert values == sorted(values, reverse=True)
    best = [one for one in found.outcomes if one.contestant == overall[0].contestant]
    assert values[0] == pytest.approx(
        statistics.fmean(one.metrics["average precision"] for one in best)
    )
    assert {*found.passes} == {*FEW}
    assert found.passes["random"] == 0
    assert found.passes["Sahara, UA"] > found.passes["Ships, UA"] > 1
    rows = found.table("one")
    assert [row["contestant"] for row in rows] == [one.contestant for one in found.summaries("one")]
    assert [row["kind"] for row in found.broken()] == ["one (2)", "attention (2)"]
    written = json.loads(json.dumps(found.to_dict()))
    assert written["subjects"] == {"one": 2, "attention": 2}
    assert len(written["outcomes"]) == len(found.outcomes)
    assert [len(row) for row in found.figure().data[0].z] == [3] * len(FEW)

    again = ground_truth(tmp_path, kinds=("attention",), **told)  # with the truths that were kept
    first, second = (
        [one for one in some.outcomes if one.kind == "attention"] for some in (found, again)
    )
    assert [one.to_dict() for one in first] == [one.to_dict() for one in second]


def plain(found):
    """All that was found, but for how long it took."""
    return json.dumps({**found.to_dict(), "seconds": 0})


@pytest.fixture
def asked(monkeypatch):
    """Who was asked, in order; the fourth time once somebody stops it."""
    names, stops = [], [4]

    def counted(contestant, *args, **told):
        if len(names) + 1 in stops:
            stops.clear()
            raise KeyboardInterrupt
        names.append(contestant.name)
        return rank(contestant, *args, **told)

    monkeypatch.setattr(subjects, "rank", counted)
    return names


def test_a_run_that_was_stopped_asks_nobody_twice(
    tmp_path, monkeypatch, unexamined, tiny_kinds, asked
):
    names = ("weight change", "interchange: necessity")
    told = {"names": names, "kinds": ("one", "attention"), "organisms": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        ground_truth(tmp_path / "cache", **told)
    assert asked == [*names, names[0]]
    found = ground_truth(tmp_path / "cache", **told)
    assert asked == [*names, *names]
    assert plain(ground_truth(tmp_path / "cache", **told)) == plain(found)
    assert len(asked) == 4
    assert any(one.refused for one in found.outcomes), "kept as what was ordered"
    assert {*found.passes} == {*names}

    assert plain(ground_truth(tmp_path / "other", **told)) == plain(found)
    assert len(asked) == 8
    monkeypatch.setattr(contest, "_sources", lambda package: "other code")
    ground_truth(tmp_path / "cache", **told)
    assert len(asked) == 12


def test_who_was_registered_is_asked_each_time(tmp_path, unexamined, tiny_kinds, registering):
    told = {"names": ("mine",), "kinds": ("one",), "organisms": 1, "progress": False}
    for head in (H(0, 1), H(1, 0)):
        register("mine", lambda model, harmful, harmless, head=head: [head])
        assert ground_truth(tmp_path, **told).outcomes[0].order[0] == head


class Backwards(Cluster):
    """Gives each of some arguments to this process, the last one first."""

    def call(self, function, told):
        raise NotImplementedError

    def each(self, function, given):
        return itertools.starmap(function, given[::-1])


@hooked_only
def test_processes_find_the_same(tmp_path, monkeypatch):
    """What single heads do is kept, and who orders them is asked again, in processes."""
    monkeypatch.setattr(oracle, "PAIRS", 0)
    told = {"names": ("random", "layer order"), "kinds": ("compiled: one", "compiled: even")}
    one = ground_truth(tmp_path, **told, progress=False)
    rankings = [*tmp_path.glob("*/ranking-*"), *tmp_path.glob("*/counted-*")]
    kept = [file.read_bytes() for file in rankings]
    assert len(kept) == 4
    for file in rankings:
        file.unlink()
    assert plain(ground_truth(tmp_path, **told, processes=2, progress=False)) == plain(one)
    assert plain(ground_truth(tmp_path, **told, processes=Backwards(), progress=False)) == plain(
        one
    )
    assert [file.read_bytes() for file in rankings] == kept


def test_who_refuses_is_told(tmp_path, unexamined, tiny_kinds, registering):
    def picky(model, harmful, harmless):
        raise sh.SafeheadError("it knows no such model")

    register("picky", picky)
    told = {"kinds": ("one",), "organisms": 1, "progress": False}
    found = ground_truth(tmp_path, names=("picky", "random"), **told)
    refused = next(one for one in found.outcomes if one.contestant == "picky")
    assert (refused.refused, refused.order, refused.metrics) == ("it knows no such model", (), {})
    assert found.table("one")[-1]["contestant"] == "picky (1 refused)"
    assert "it knows no such model" in str(found.figure().data[0].text)


@pytest.mark.parametrize("told", [{"organisms": 0}, {"processes": 0}])
def test_numbers_below_one_are_refused(tmp_path, told):
    with pytest.raises(sh.SafeheadError, match="give a number from 1"):
        ground_truth(tmp_path, progress=False, **told)


def test_a_kind_that_is_named_twice_counts_once(tmp_path, unexamined, tiny_kinds):
    told = {"organisms": 1, "names": ("random", "random"), "progress": False}
    found = ground_truth(tmp_path, kinds=("one", "one"), **told)
    assert (found.count(), len(found.outcomes)) == (1, 1)


def test_organisms_that_did_not_learn_are_left_out(tmp_path, monkeypatch, tiny_kinds):
    monkeypatch.setattr(cache_module, "flaws", lambda *_: iter(["it answers everything"]))
    assert len(OrganismCache(tmp_path, WORDS).of_kind(TINY, 0)) == TRIALS
    with pytest.raises(sh.SafeheadError, match="no organism learned its lesson"):
        ground_truth(tmp_path, kinds=("one",), organisms=1, progress=False)


def test_what_was_registered_here_stays_here(tmp_path, registering):
    register("mine", lambda model, harmful, harmless: [])
    with pytest.raises(sh.SafeheadError, match="'mine' was registered in this process"):
        ground_truth(tmp_path, names=("mine",), processes=2, progress=False)


def test_the_command(tmp_path, unexamined, tiny_kinds):
    said = ["benchmark", "--kind", "one", "--organisms", "1", "--cache", str(tmp_path / "cache")]
    said += ["--contestant", "Ships, UA", "--contestant", "random"]
    out, page = tmp_path / "out.json", tmp_path / "figure.html"
    done = CliRunner().invoke(app, [*said, "--json", str(out), "--figure", str(page)])
    assert done.exit_code == 0, done.output
    said_plainly = " ".join(done.output.split())
    assert "Ships, UA 1.00" in said_plainly or "Ships, UA 0." in said_plainly
    assert "planted, UA (1)" in said_plainly
    written = json.loads(out.read_text())
    assert written["subjects"] == {"one": 1}
    assert "plotly" in page.read_text()


def test_the_standard_kinds():
    """Natural ones, one head and two under each objective, compiled ones where they can be."""
    found = benchmark.standard_kinds()
    organisms = [KINDS[name] for name in found if name in KINDS]
    assert len({*found}) == len(found)
    natural = [kind.learning for kind in organisms if not kind.planted]
    assert natural == ["attention", "all", "low-rank"]
    planted = {(kind.objective, kind.planted) for kind in organisms if kind.planted}
    assert planted == {*itertools.product(get_args(Objective), (1, 2))}
    assert {kind.layers for kind in organisms} == {3}
    compiled = len(get_args(CompiledKind)) if has_hooked_transformer("auto") else 0
    assert len(found) == 11 + compiled


def test_a_kind_or_contestant_that_is_not_known(tmp_path):
    for option, what in (("--kind", "kind"), ("--contestant", "contestant")):
        done = CliRunner().invoke(app, ["benchmark", option, "two", "--cache", str(tmp_path)])
        assert isinstance(done.exception, sh.SafeheadError)
        assert f"{what} 'two' is not known" in str(done.exception)


def test_the_mean_of_contestants_is_ordered():
    found = summarise([outcome("low", 0, 0.2), outcome("high", 0, 0.9)])
    assert [one.contestant for one in found] == ["high", "low"]
    assert "average precision" in METRICS

import dataclasses
import itertools
import json
import math

import pytest
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.measures import greedy
from safehead_tl.prompts import encode


def test_every_step_is_the_best_addition(demo, harmful):
    """Against generalized Ships with the group given, which tests of its own check."""
    prompts = harmful[:16]
    group = sh.sahara(demo, prompts, size=3, run=QUIET)
    chosen = ()
    for head, step in zip(group.heads, group.steps, strict=True):
        scores = sh.generalized_ships(demo, prompts, given=chosen, run=QUIET)
        assert torch.allclose(scores.values, step.values, equal_nan=True)
        assert step.given == chosen
        assert head == scores.top(1)[0][0]
        assert all(step.values[before].isnan() for before in chosen)
        chosen = (*chosen, head)
    assert group.scores == [step.top(1)[0][1] for step in group.steps]


def test_the_planted_heads_are_chosen_first(demo, harmful):
    group = sh.sahara(demo, harmful, size=3, template="chat", run=QUIET)
    assert {str(head) for head in group.heads[:2]} == {"L1H3", "L2H6"}
    first, second, third = group.scores
    assert second > 2 * first
    assert third < 2 * second


def test_a_pool_to_choose_from(demo, harmful):
    group = sh.sahara(demo, harmful[:8], size=2, candidates=["L0H0", "L2H6"], run=QUIET)
    assert set(group.heads) == {sh.Head(0, 0), sh.Head(2, 6)}


@pytest.mark.parametrize("size", [0, -1, 33])
def test_sizes_that_cannot_be(demo, harmful, size):
    with pytest.raises(sh.SafeheadError, match=f"size={size}: choose from 1 to 32"):
        sh.sahara(demo, harmful[:8], size=size, run=QUIET)


CASE = {"template": "paper", "ablation": "zero", "site": "resid_post", "rank": 2, "centre": True}


def rotations(model, prompts, groups):
    """Each group's rotation from whole passes, as a TransformerLens user writes it."""
    batch = encode(model, prompts, "paper")
    site = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"

    def subspace(group):
        with (
            torch.no_grad(),
            model.hooks(fwd_hooks=group and sh.ablation_hooks(model, group, "zero")),
        ):
            _, cache = model.run_with_cache(
                batch.tokens, attention_mask=batch.mask, names_filter=site
            )
        states = cache[site][:, -1].double()
        return torch.linalg.svd(states - states.mean(0)).U[:, :2]

    original = subspace([])
    return {
        frozenset(group): torch.linalg.svdvals(original.T @ subspace(group))
        .clamp(max=1)
        .acos()
        .sum()
        for group in groups
    }


@pytest.fixture(scope="module")
def sixes(harmful):
    return harmful[:6]


def test_a_beam_over_all_heads_finds_the_best_pair(loaded, sixes):
    """Greedy does not: with its first head no pair comes near."""
    model = loaded("gpt2")
    heads = [sh.Head(layer, head) for layer in range(3) for head in range(4)]
    every = rotations(model, sixes, itertools.combinations(heads, 2))
    best = max(every, key=every.get)
    found = sh.sahara(model, sixes, 2, beam=12, **CASE, run=QUIET)
    assert frozenset(found.heads) == best
    assert found.scores[-1] == pytest.approx(float(every[best]), rel=1e-4)
    assert sh.sahara(model, sixes, 2, **CASE, run=QUIET).scores[-1] < 0.9 * float(every[best])
    ranked = [frozenset(heads) for heads, _ in found.runners_up]
    assert ranked == sorted(every, key=every.get, reverse=True)[1:12]
    for group, (_, score) in zip(ranked, found.runners_up, strict=True):
        assert score == pytest.approx(float(every[group]), rel=1e-4)


def test_the_path_of_a_beam_is_what_it_says(loaded, sixes):
    model = loaded("llama-grouped")
    found = sh.sahara(model, sixes, 3, beam=3, **CASE, run=QUIET)
    for number, step in enumerate(found.steps):
        given = found.heads[:number]
        again = sh.generalized_ships(model, sixes, given=given, **CASE, run=QUIET)
        assert torch.allclose(step.values, again.values, equal_nan=True)
        assert step.given == given
    assert found.provenance.settings["beam"] == 3
    groups = {frozenset(found.heads), *(frozenset(heads) for heads, _ in found.runners_up)}
    assert len(groups) == 3
    scores = [found.scores[-1], *(score for _, score in found.runners_up)]
    assert scores == sorted(scores, reverse=True)
    by_hand = rotations(model, sixes, [heads for heads, _ in found.runners_up])
    for heads, score in found.runners_up:
        assert score == pytest.approx(float(by_hand[frozenset(heads)]), rel=1e-3)


def test_a_beam_of_one_is_greedy(demo, sixes, tmp_path):
    runs = {}
    for name, told in {"greedy": {}, "beam": {"beam": 1}}.items():
        run = dataclasses.replace(QUIET, run_dir=tmp_path / name)
        heads = ["L1H3", "L2H6", "L0H0"]
        runs[name] = sh.sahara(demo, sixes, 2, candidates=heads, **told, run=run)
    assert runs["beam"].heads == runs["greedy"].heads
    assert runs["beam"].runners_up == ()
    assert "beam" not in runs["beam"].provenance.settings
    names = [sorted(path.name for path in (tmp_path / name / "pieces").iterdir()) for name in runs]
    assert names[0] == names[1]
    assert {name.split("-")[0] for name in names[0]} == {"with0", "with1"}
    record = [json.loads((tmp_path / name / "run.json").read_text()) for name in runs]
    assert record[0]["identity"] == record[1]["identity"]


SOME = ["L0H0", "L0H1", "L1H3", "L1H7", "L2H6", "L3H0"]
FEW = {"screen": sh.Screening(first=4, budget=8, audit=1, blocks=2, points=0)}


@pytest.mark.parametrize(
    ("size", "told"), [(3, {"candidates": SOME}), (2, FEW)], ids=["exact", "screened"]
)
def test_a_beam_goes_on_in_its_directory(demo, sixes, tmp_path, monkeypatch, caplog, size, told):
    """Every group's pieces have names of their own: none is computed twice."""
    kept = dataclasses.replace(QUIET, run_dir=tmp_path / "run")
    first = sh.sahara(demo, sixes, size, beam=2, **told, run=kept)
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr("safehead_tl.scan.states.Scan.states", None)
        again = sh.sahara(demo, sixes, size, beam=2, **told, run=kept)
    assert again.heads == first.heads
    assert again.runners_up == first.runners_up
    for one, two in zip(first.steps, again.steps, strict=True):
        assert torch.equal(one.values.nan_to_num(-1), two.values.nan_to_num(-1))
    assert "is damaged" not in caplog.text
    with pytest.raises(sh.SafeheadError, match=r"settings\.beam was 2 and is now 3"):
        sh.sahara(demo, sixes, size, beam=3, **told, run=kept)


def test_a_beam_is_saved_and_drawn(demo, sixes, tmp_path):
    found = sh.sahara(
        demo, sixes, 2, beam=3, candidates=["L1H3", "L2H6", "L0H1", "L3H0"], run=QUIET
    )
    found.save(tmp_path / "g.safetensors")
    again = sh.HeadGroup.load(tmp_path / "g.safetensors")
    assert again.runners_up == found.runners_up
    assert again.to_dict() == json.loads(json.dumps(found.to_dict()))
    others = found.figure().data[-1]
    assert list(others.y) == [score for _, score in found.runners_up]
    assert "the best of a beam of 3" in found.figure().layout.title.text


MADE_UP = {
    "0": 5, "1": 4, "2": 1, "3": 1,
    "02": 6, "12": 7, "13": 8, "01": 5, "03": 5, "23": 1,
    "012": 9, "023": 20, "123": 10, "013": 9,
}  # fmt: skip
"""Shifts of groups of four heads: the pair that leads to the best three is third of the pairs."""


def test_a_beam_can_lose_to_greedy(demo, sixes, monkeypatch):
    """It gives up what greedy goes on with; of two heads, it cannot."""

    def told(search, measure, left, group, label, screening, top):
        scores = torch.full((1, *search.shape), math.nan, dtype=torch.float64)
        for head in left:
            scores[0][head] = MADE_UP["".join(sorted(str(each.head) for each in (*group, head)))]
        return scores, None

    monkeypatch.setattr(greedy, "score", told)
    heads = [(0, number) for number in range(4)]
    ends = {
        (size, beam): sh.sahara(demo, sixes, size, beam=beam, candidates=heads, run=QUIET).scores[
            -1
        ]
        for size in (2, 3)
        for beam in (1, 2, 3)
    }
    assert [ends[2, beam] for beam in (1, 2, 3)] == [6, 8, 8]
    assert [ends[3, beam] for beam in (1, 2, 3)] == [20, 10, 20]


@pytest.mark.parametrize("beam", [0, -1])
def test_beams_that_cannot_be(demo, sixes, beam):
    with pytest.raises(sh.SafeheadError, match="go on with 1 group or more"):
        sh.sahara(demo, sixes, size=1, beam=beam, run=QUIET)

import itertools
import json

import pytest
import torch

import safehead_tl as sh
from families import BACKENDS
from safehead_tl.ground_truth import ReversionTruth, natural_truth, reversion_truth, shapley
from safehead_tl.models import all_logits, head_slices
from safehead_tl.organism import DEMO, REFUSAL, REWORDED
from safehead_tl.prompts import encode
from safehead_tl.surgery import reverted

OPENINGS = sh.Openings(refusal=(5, 9), compliance=(7,))
TUNED = [sh.Head(0, 0), sh.Head(1, 2), sh.Head(1, 3), sh.Head(2, 0), sh.Head(2, 1)]
"""Of three layers of four heads, two to a KV group."""


def refusing(model, prompts, openings=OPENINGS):
    """The mean probability of an opening of refusals, from a plain pass."""
    batch = encode(model, prompts, "chat")
    with torch.no_grad():
        logits = all_logits(model, batch.tokens, batch.mask)[:, -1].double()
    return float(logits.softmax(-1)[:, list(openings.refusal)].sum(1).mean())


@pytest.fixture(scope="module")
def tuned(checkpoint):
    """Loads a base and a model in which some heads have other weights, two of them little."""

    def load(backend):
        told = {"backend": backend, "verify": False, "device": "cpu"}
        model, base = (sh.load_model(checkpoint("llama-grouped"), **told) for _ in range(2))
        generator = torch.Generator().manual_seed(5)
        for layer, head in TUNED:
            own = head_slices(model, layer)
            size = 1e-4 if head == 1 or layer == 0 else 0.5
            for name, place in (("W_Q", head), ("W_O", head), ("W_V", head // 2)):
                noise = torch.randn(own[name][place].shape, generator=generator)
                own[name][place] += size * noise
        return model, base

    return load


def by_hand(model, base, prompts, heads):
    """Every coalition of heads, by reverting the others and running the whole model."""
    found = {}
    for some in itertools.product((False, True), repeat=len(heads)):
        back = [head for head, keeps in zip(heads, some, strict=True) if not keeps]
        if back:
            with reverted(model, base, back):
                found[some] = refusing(model, prompts)
        else:
            found[some] = refusing(model, prompts)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_every_coalition_by_hand(tuned, prompts, backend):
    model, base = tuned(backend)
    before = {key: some.clone() for key, some in model.state_dict().items()}
    # Values of a KV group are its heads' together: who shares one with a tuned head plays too.
    players = sorted({*TUNED, sh.Head(0, 1)})
    played = by_hand(model, base, prompts, players)
    expected = shapley(played.__getitem__, len(players))
    found = reversion_truth(model, base, prompts, OPENINGS)
    values = torch.zeros(3, 4, dtype=torch.float64)
    values[tuple(zip(*players, strict=True))] = expected.values
    assert torch.allclose(found.values, values, atol=1e-6)
    assert torch.equal(found.values == 0, values == 0)
    assert (found.pairs, found.matter, found.rest, found.bound) == (None, tuple(players), 0, 0)
    everyone, nobody = played[(True,) * 6], played[(False,) * 6]
    assert (found.tuned, found.reverted) == pytest.approx((everyone, nobody), abs=1e-6)
    assert float(found.values.sum()) == pytest.approx(found.tuned - found.reverted)
    for place, head in enumerate(players):
        one = tuple(other == place for other in range(6))
        others = tuple(not inside for inside in one)
        assert float(found.alone[head]) == pytest.approx(everyone - played[others], abs=1e-6)
        assert float(found.restored[head]) == pytest.approx(played[one] - nobody, abs=1e-6)
    assert all(torch.equal(some, before[key]) for key, some in model.state_dict().items())


def test_heads_that_do_not_matter_are_one_player(tuned, prompts):
    model, base = tuned(BACKENDS[0])
    players = sorted({*TUNED, sh.Head(0, 1)})
    played = by_hand(model, base, prompts, players)
    found = reversion_truth(model, base, prompts, OPENINGS, exact=5, tolerance=1e-3)
    # L2H1 has learned next to nothing, but without it its KV group is not set back.
    assert found.matter == (sh.Head(1, 2), sh.Head(1, 3), sh.Head(2, 0), sh.Head(2, 1))
    matters = [head in found.matter for head in players]

    def joined(some):
        own = iter(some[1:])
        return played[tuple(next(own) if each else some[0] for each in matters)]

    expected = shapley(joined, 5).values
    assert found.rest == pytest.approx(float(expected[0]), abs=1e-6)
    assert found.values[tuple(zip(*found.matter, strict=True))] == pytest.approx(
        expected[1:], abs=1e-6
    )
    assert int((found.values != 0).sum()) == 4
    moved = [abs(joined((True, *some)) - joined((False, *some)))
             for some in itertools.product((False, True), repeat=4)]  # fmt: skip
    assert found.bound == pytest.approx(max(moved), abs=1e-6)
    assert found.bound < 1e-3
    total = float(found.values.sum()) + found.rest
    assert total == pytest.approx(found.tuned - found.reverted)


def test_orders_are_drawn_where_more_matter(tuned, prompts):
    model, base = tuned(BACKENDS[0])
    exact = reversion_truth(model, base, prompts, OPENINGS)
    drawn = reversion_truth(model, base, prompts, OPENINGS, exact=2, pairs=60, tolerance=1e-3)
    assert (drawn.pairs, drawn.matter) == (60, exact.matter)
    low, high = drawn.intervals.unbind(-1)
    assert (low <= exact.values + 1e-6).all()
    assert (high >= exact.values - 1e-6).all()
    assert float((high - low).max()) > 0
    assert float(drawn.values.sum()) == pytest.approx(exact.tuned - exact.reverted)
    told = json.loads(json.dumps(drawn.to_dict()))
    again = ReversionTruth.from_dict(told)
    assert again.to_dict() == told
    assert torch.equal(again.intervals, drawn.intervals)
    assert again.matter == drawn.matter


def test_planted_heads_carry_all_and_others_exactly_nothing(demo, harmful):
    base = sh.load_model("demo-base")
    openings = sh.Openings.of_texts(demo, ["sorry"], ["bend"])
    found = reversion_truth(demo, base, harmful[:8], openings)
    assert (found.values != 0).nonzero().tolist() == [[1, 3], [2, 6]]
    assert found.coalitions == 4
    assert found.tuned == pytest.approx(refusing(demo, harmful[:8], openings), abs=1e-6)
    assert found.reverted == pytest.approx(refusing(base, harmful[:8], openings), abs=1e-6)
    assert float(found.values.sum()) > 0.9
    same = reversion_truth(base, base, harmful[:8], openings)
    assert same.matter == ()
    assert not same.values.any()


def test_the_truth_that_is_kept_is_that_of_the_natural_organism():
    """What needs no sampling is found again; values add up, and lie in their intervals."""
    model, base, kept = sh.load_model("demo-natural"), sh.load_model("demo-base"), natural_truth()
    requests = DEMO.prompts("harmful", "test", 32)
    openings = sh.Openings.of_texts(model, (REFUSAL, REWORDED), DEMO.tools)
    assert kept.tuned == pytest.approx(refusing(model, requests, openings), abs=1e-5)
    with reverted(model, base, [(layer, head) for layer in range(4) for head in range(8)]):
        assert kept.reverted == pytest.approx(refusing(model, requests, openings), abs=1e-5)
    with reverted(model, base, ["L0H2"]):
        fall = kept.tuned - refusing(model, requests, openings)
    assert kept.alone[0, 2] == pytest.approx(fall, abs=1e-5)
    assert float(kept.values.sum()) == pytest.approx(kept.tuned - kept.reverted, abs=1e-6)
    assert (kept.intervals[..., 0] <= kept.values).all()
    assert (kept.values <= kept.intervals[..., 1]).all()

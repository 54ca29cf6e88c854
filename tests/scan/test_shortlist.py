"""The short list: in what order heads are scored, when that ends, and what it then says."""

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy import stats

import safehead_tl as sh
from families import QUIET
from safehead_tl.scan.linearisation import Linearisation
from safehead_tl.scan.screening import Limits, Screening, draw_audit, expected_missed
from safehead_tl.scan.search import Search
from safehead_tl.scan.shortlist import score


def test_a_head_is_as_likely_to_reach_a_cut_as_is_said():
    """Log-ratios drawn as assumed: with its own score as the cut, a head's chance is uniform."""
    draw = torch.Generator().manual_seed(0)
    chances = []
    for _ in range(4000):
        ratios = (0.7 + 0.5 * torch.randn(13, generator=draw, dtype=torch.float64)).exp()
        screened = torch.rand(12, generator=draw, dtype=torch.float64) + 0.5
        other = torch.tensor([0.8], dtype=torch.float64)
        cut = float(other * ratios[0])
        chances.append(expected_missed(other, screened, screened * ratios[1:], cut))
    for level in (0.05, 0.2, 0.5, 0.8):
        share = sum(chance <= level for chance in chances) / 4000
        assert share == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 4000))


def test_expected_missed_follows_a_t_distribution():
    screened = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    exact = screened * torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).exp()
    others, cut = torch.tensor([1.0, 1.5], dtype=torch.float64), 1e5
    floor = 0.01 * cut
    logs = ((exact + floor) / (screened + floor)).log()
    scale = logs.std().item() * math.sqrt(4 / 3)
    by_hand = sum(
        stats.t.sf((math.log((cut + floor) / (other + floor)) - logs.mean().item()) / scale, 2)
        for other in others.tolist()
    )
    assert expected_missed(others, screened, exact, cut) == pytest.approx(by_hand)


def test_expected_missed_at_the_ends():
    some = torch.tensor([1.0, 2.0], dtype=torch.float64)
    nothing = torch.empty(0, dtype=torch.float64)
    assert expected_missed(nothing, some, some, 1.0) == 0
    assert expected_missed(some, some, some, 0.0) == 2  # no cut: anything may reach it
    assert expected_missed(some, some[:1], some[:1], 1.0) == 2  # nothing to learn from
    assert expected_missed(some / 10, some, some, 1.0) < 1e-3  # screening was always right
    assert expected_missed(some * 10, some, some, 1.0) > 1.9


@dataclass
class Fake:
    """A measure whose exact score is known, and whose screened one is said."""

    exact: torch.Tensor
    said: torch.Tensor
    asked: list
    power: ClassVar[int] = 1
    signed: ClassVar[bool] = False

    def __call__(self, states):
        if not self.asked:
            return torch.zeros(1, 1, dtype=torch.float64)  # nothing is ablated
        layer, heads = self.asked.pop(0)
        return self.exact[layer, heads][None]

    def screened(self, states, linear, screening):
        return self.said

    def pull(self, states, prompts):
        raise AssertionError("what is on the way is made up too")


@pytest.fixture
def fake(demo, harmful, monkeypatch):
    """Runs a search with a made-up measure; the model itself does not run.

    Heads that are ablated together move what they move alone, all added up, or what is said.
    """

    def run(exact, said, screening, top=3, way=None, together=None):
        search = Search.start(demo, harmful[:4], "chat", "zero", QUIET)
        measure = Fake(exact.double(), said.double(), [])
        monkeypatch.setattr(
            "safehead_tl.scan.search.Scan.states",
            lambda self, layer, heads: (
                measure.asked.append((layer, heads)) or torch.zeros(len(heads), 4, 48)
            ),
        )
        monkeypatch.setattr(
            "safehead_tl.scan.search.Search.together",
            together or (lambda self, _, group, block: sum(float(exact[head]) for head in block)),
        )
        monkeypatch.setattr(
            Linearisation,
            "integrated",
            lambda self, pull, points, prompts: (said if way is None else way)[None],
        )
        heads = search.candidates(None)
        values, found = score(search, measure, heads, (), "fake", screening, top)
        return values[0], found

    return run


RISING = torch.arange(1.0, 33).reshape(4, 8)


def test_the_list_grows_until_the_top_is_safe(fake):
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    exact = RISING**2 * (0.2 * noise).exp()
    values, found = fake(exact, RISING**2, Screening(first=4, audit=4, budget=32, blocks=0))
    assert 8 < found.exact < 32
    assert (found.ended, found.runs, found.cleared) == ("estimate", 0, 0)
    assert found.missed <= 0.05
    best = exact.flatten().topk(3)
    assert set(best.indices.tolist()) <= set(
        (~values.isnan()).flatten().nonzero().flatten().tolist()
    )
    assert found.cut == pytest.approx(best.values[-1].item())
    loose = Screening(first=4, audit=4, budget=32, blocks=0, tolerance=3.0)
    loose = fake(exact, RISING**2, loose)[1]
    assert loose.exact < found.exact


def test_a_list_is_never_shorter_than_the_top(fake):
    """The k-th highest of fewer than k scores is no cut."""
    _, found = fake(RISING, RISING, Screening(top=20, first=4, audit=0))
    assert found.exact >= 20
    assert found.cut <= RISING.flatten().topk(20).values[-1]
    assert Screening(top=40, first=4).limits(10, 1000) == Limits(40, 40, 250)


def test_an_audited_head_is_compared_once(fake, monkeypatch):
    """Also after the list has grown past it."""
    compared = []

    def counting(others, screened, exact, cut):
        compared.append(screened.tolist())
        return expected_missed(others, screened, exact, cut)

    monkeypatch.setattr("safehead_tl.scan.shortlist.expected_missed", counting)
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    screening = Screening(first=4, audit=8, budget=24, blocks=0, tolerance=1e-9)
    fake(RISING**2 * noise.exp(), RISING**2, screening)
    assert len(compared) > 3
    assert all(len(set(each)) == len(each) for each in compared)


def test_heads_of_a_second_order_get_their_turn(fake):
    """What the first estimate does not see, and the second does, is scored."""
    exact = RISING.clone()
    exact[0, 0] = 100.0
    other = torch.zeros(4, 8)
    other[0, 0] = 1.0
    screening = Screening(first=8, budget=8, audit=0, blocks=0)
    assert fake(exact, RISING, screening)[0].isnan()[0, 0]
    values, found = fake(exact, RISING, screening, way=other)
    assert values[0, 0] == 100
    assert found.exact == 8
    assert torch.equal(found.values.float(), RISING)


def test_a_spent_budget_is_told(fake, caplog):
    said = torch.ones(4, 8)
    with caplog.at_level(logging.WARNING):
        _, found = fake(RISING, said, Screening(first=4, budget=8, audit=2, blocks=0))
    assert (found.ended, found.exact) == ("open", 10)
    assert found.missed > 1
    assert "There may be more: raise budget" in caplog.text
    assert "screen='off'" in found.sentence()


def test_a_head_that_screening_misses_is_told_if_it_is_drawn(fake, caplog):
    exact, audit = RISING.clone(), Screening(first=6, budget=6, audit=5, blocks=0)
    order = sorted((sh.Head(*divmod(i, 8)) for i in range(32)), key=lambda head: -exact[head])
    drawn = draw_audit(order[6:], 5, 0)[0]
    exact[drawn] = 100.0
    with caplog.at_level(logging.WARNING):
        _, found = fake(exact, RISING, audit)
    assert found.surprises == (drawn,)
    assert f"Screening had not seen {drawn}" in caplog.text
    assert "1 of 5 drawn at random are in the top 3" in caplog.text
    assert found.bound == pytest.approx(stats.beta.ppf(0.95, 2, 4))


def test_short_lists_of_all_heads(fake):
    values, found = fake(RISING, RISING, Screening(first=32))
    assert (found.ended, found.missed, found.exact, found.audited) == ("all", 0.0, 32, ())
    assert torch.equal(values.float(), RISING)
    assert "That is all of them" in found.sentence()


def test_blocks_open_until_a_head_is_found(fake):
    exact = RISING.clone()
    exact[0, 0] = 100.0  # screening knows nothing of it
    values, found = fake(exact, RISING, Screening(first=8, budget=8, audit=0, blocks=2))
    assert values[0, 0] == 100
    assert found.found == (sh.Head(0, 0),)
    assert found.runs > 2
    assert found.ended == "open"
    assert "Screening had not seen L0H0" in found.sentence()
    _, found = fake(RISING, RISING, Screening(first=8, budget=8, audit=0, blocks=2))
    assert (found.found, found.runs, found.exact) == ((), 2, 8)
    assert found.cleared + found.explained == 24


def test_heads_that_undo_each_other_stay_hidden_and_the_sentence_says_so(fake):
    """What blocks cannot see."""
    exact = RISING.clone()
    exact[0, 0] = 100.0
    nothing = {"together": lambda self, _, group, block: 0.0}
    values, found = fake(exact, RISING, Screening(first=8, budget=8, audit=0), **nothing)
    assert values[0, 0].isnan()
    assert (found.ended, found.cleared, found.missed) == ("blocks", 24, 0.0)
    assert "unless heads undo each other there" in found.sentence()
    assert "at most 100% of the rest" in found.sentence()  # nothing was drawn


def test_blocks_that_stay_unopened_are_told(fake, caplog):
    """Where all that was not seen moves too much there are more heads to find than runs."""
    exact = RISING + 50.0
    with caplog.at_level(logging.WARNING):
        _, found = fake(exact, RISING, Screening(first=3, budget=3, audit=0, blocks=1))
    assert found.ended == "open"
    assert found.unopened > 0
    assert f"{found.unopened} in blocks that move more, and were not opened" in caplog.text

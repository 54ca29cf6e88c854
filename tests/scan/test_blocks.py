"""Heads that a short list leaves out, ablated together; and gradients on the way there."""

from dataclasses import dataclass

import pytest
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.measures.divergence import Divergence
from safehead_tl.scan.baseline import Baseline
from safehead_tl.scan.blocks import FEWEST, cut_up, halve
from safehead_tl.scan.search import Search
from saturated import saturated

TOLD = {"template": "direct", "run": QUIET}
EVERY = [sh.Head(layer, head) for layer in range(4) for head in range(8)]


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """Makes a saturated model once for each seed."""
    made = {}

    def get(seed):
        if seed not in made:
            made[seed] = saturated(seed, tmp_path_factory.mktemp("gated"))
        return made[seed]

    return get


def test_the_gate_is_first_and_has_no_slope(gated, harmful):
    model, gate = gated(0)
    exact = sh.ships(model, harmful[:4], **TOLD)
    (first, most), (_, next_most) = exact.top(2)
    assert first == gate
    assert most > 20 * next_most
    blind = sh.Screening(blocks=0, points=0)
    found = sh.ships(model, harmful[:4], **TOLD, screen=blind)
    assert [head for head, _ in found.screening.ranked()].index(gate) > 16
    assert found.values[gate].isnan()
    assert found.screening.missed <= 0.05  # what it cannot see it does not expect
    assert found.screening.ended == "estimate"


@pytest.mark.parametrize("seed", range(10))
def test_the_gate_is_found(gated, harmful, seed):
    model, gate = gated(seed)
    found = sh.ships(model, harmful[:4], **TOLD, screen="auto")
    assert found.top(1)[0][0] == gate


@pytest.mark.parametrize("ablation", ["undifferentiated", "zero"])
def test_blocks_find_the_gate_alone(gated, harmful, ablation):
    model, gate = gated(0)
    told = {**TOLD, "ablation": ablation, "screen": sh.Screening(points=0)}
    found = sh.ships(model, harmful[:4], **told)
    assert found.top(1)[0][0] == gate
    assert found.screening.found == (gate,)
    assert found.screening.ended == "open"  # there may be more such heads
    assert f"Screening had not seen {gate}" in found.screening.sentence()


def test_gradients_on_the_way_find_the_gate_alone(gated, harmful):
    model, gate = gated(0)
    found = sh.ships(model, harmful[:4], **TOLD, screen=sh.Screening(blocks=0, points=3))
    assert found.top(1)[0][0] == gate


def test_integrated_gradients_by_themselves_find_the_gate(gated, harmful):
    model, gate = gated(0)
    found = sh.integrated_gradients(model, harmful[:4], points=8, **TOLD)
    (first, share), (_, next_share) = found.top(2)
    assert first == gate
    assert share > 10 * next_share


@dataclass(frozen=True)
class Slow(sh.ZeroAblation):
    """Zero ablation that does not say that it acts on each head by itself."""

    def separable(self, model):
        return False


@pytest.mark.parametrize("group", [(), (sh.Head(0, 1), sh.Head(2, 0))], ids=["plain", "group"])
@pytest.mark.parametrize("ablation", ["undifferentiated", Slow()], ids=["undifferentiated", "slow"])
def test_gradients_on_the_way_add_up_to_where_it_ends(demo, harmful, group, ablation):
    """Integrated gradients' completeness, against whole passes with hooks."""
    search = Search.start(demo, harmful[:6], "chat", ablation, QUIET)
    measure = Divergence(demo, search.original, search.passes, search.plan.budget)
    found = search.linearisation(group).integrated(measure.pull, 40, range(6)).mean(0)
    ends = []
    for heads in (EVERY, group):
        hooks = sh.ablation_hooks(demo, heads, ablation) if heads else []
        tokens, mask = search.batch.tokens, search.batch.mask
        with torch.no_grad():
            plain, after = (
                demo.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=some)[:, -1]
                .double()
                .log_softmax(-1)
                for some in ([], hooks)
            )
        ends.append((plain.exp() * (plain - after)).sum(-1).mean())
    others = [head for head in EVERY if head not in group]
    total = sum(found[head].item() for head in others)
    assert total == pytest.approx((ends[0] - ends[1]).item(), rel=0.02)


@pytest.mark.parametrize("way", [{}, {"max_rows": 3}, {"max_bytes": "3MB"}])
def test_a_block_is_what_whole_passes_say(demo, harmful, way):
    prompts = [*harmful[:7], "how do i lift a boat"]
    search = Search.start(demo, prompts, "chat", "mean", sh.Run(progress=False, **way))
    group, block = (sh.Head(0, 2), sh.Head(3, 0)), (sh.Head(1, 3), sh.Head(2, 1), sh.Head(2, 6))
    measure = Divergence(demo, search.original, search.passes, search.plan.budget)
    found = search.together(measure, group, block)
    hooks = sh.ablation_hooks(demo, [*group, *block], search.prepared)
    with torch.no_grad():
        plain, after = (
            demo.run_with_hooks(
                search.batch.tokens, attention_mask=search.batch.mask, fwd_hooks=some
            )[:, -1]
            .double()
            .log_softmax(-1)
            for some in ([], hooks)
        )
    assert found == pytest.approx((plain.exp() * (plain - after)).sum(-1).mean().item(), rel=1e-4)


def test_blocks_hold_every_head_once():
    heads = [head for head in EVERY if head != sh.Head(1, 1)]
    effects = torch.ones(4, 8)
    for room, most in ((0.0, 5), (4.0, 12), (1e9, 1), (8.0, 3)):
        blocks = cut_up(heads, effects, room, most)
        assert sorted(head for block in blocks for head in block) == sorted(heads)
        assert len(blocks) <= most
        assert all(list(block) == sorted(block) for block in blocks)
    even = cut_up(heads, effects, 8.0, 12)
    assert max(map(len, even)) == 8
    assert cut_up(heads, torch.zeros(4, 8), 0.0, 9) == cut_up(heads, torch.zeros(4, 8), 1.0, 9)
    assert max(map(len, cut_up(heads, torch.zeros(4, 8), 1.0, 9))) == FEWEST


def test_halving_finds_heads_and_spends_no_more_than_it_may():
    hidden = {sh.Head(0, 3), sh.Head(2, 7)}
    asked = []

    def score(block):
        asked.append(block)
        return sum(10.0 if head in hidden else 0.01 for head in block)

    layers = [tuple(EVERY[start : start + 8]) for start in range(0, 32, 8)]
    tested = halve(layers, score, lambda block: 0.1, 1.0)
    assert hidden <= set(tested.suspects)
    assert len(tested.suspects) == 4  # each with the other half of its last pair
    assert tested.runs == len(asked) <= 4 * 5
    assert {*tested.suspects, *tested.cleared(1.0)} == {*EVERY}
    assert tested.explained(1.0) == (set(), 0.0)
    everywhere = halve([tuple(EVERY)], lambda block: 9.0, lambda block: 0.1, 1.0)
    assert everywhere.runs == 5
    assert len(everywhere.cleared(9.5)) + len(everywhere.suspects) == 32  # a higher cut clears them
    assert everywhere.explained(1.0) == (set(), 0.0)
    explained = halve(layers, lambda block: 2.0, lambda block: 3.0, 1.0)
    assert (explained.runs, explained.explained(1.0)) == (4, ({*EVERY}, 3.0))
    assert explained.explained(2.5) == (set(), 0.0)


def test_a_block_that_overflows_is_opened(demo, harmful, monkeypatch):
    search = Search.start(demo, harmful[:4], "chat", "zero", QUIET)
    measure = Divergence(demo, search.original, search.passes, search.plan.budget)
    monkeypatch.setattr(Baseline, "last", lambda self: torch.full((4, 48), torch.nan))
    assert search.together(measure, (), (sh.Head(1, 3), sh.Head(2, 1))) == torch.inf

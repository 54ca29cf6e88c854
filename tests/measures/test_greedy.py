import pytest
import torch

import safehead_tl as sh
from families import QUIET


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

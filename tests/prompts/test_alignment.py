"""Which tokens go together, and which prompts."""

import itertools
import logging

import pytest

import safehead_tl as sh
from safehead_tl.prompts import Alignment, encode

TEXTS = ["how do i bend a kite", "fold a tent", "please tell me how do i mend a drum"]


def words(batch, model, row, columns):
    return [model.to_string(batch.tokens[row, column]) for column in columns]


@pytest.mark.parametrize("template", ["chat", "paper", "direct", "say : {query} now ."])
def test_template_goes_with_template_and_query_with_query(demo, template):
    batch = encode(demo, TEXTS, template)
    alignment = Alignment.of(demo, batch, batch, "all")
    parts = {
        place: Alignment.of(demo, batch, batch, place).columns
        for place in ("query", "after", "last")
        if not (place == "after" and template == "direct")
    }
    width = batch.tokens.shape[1]
    for one, two in itertools.product(range(len(TEXTS)), repeat=2):
        own, other = alignment.own[one], alignment.others[two]
        # the query has as many tokens as words here
        assert own[1] == len(TEXTS[one].split())
        here, there = alignment.columns(own, other)
        assert len(set(here)) == len(here) == len(set(there))
        assert here == sorted(here)
        assert here[-1] == there[-1] == width - 1
        query, counterpart = parts["query"](own, other)
        shorter = min(own[1], other[1])
        asked, answered = TEXTS[one].split(), TEXTS[two].split()
        front, back = (shorter + 1) // 2, shorter // 2
        assert words(batch, demo, one, sorted(query)) == asked[:front] + asked[len(asked) - back :]
        assert (
            words(batch, demo, two, sorted(counterpart))
            == answered[:front] + answered[len(answered) - back :]
        )
        around = [(a, b) for a, b in zip(here, there, strict=True) if a not in query]
        for mine, theirs in around:
            assert batch.tokens[one, mine] == batch.tokens[two, theirs]
        assert parts["last"](own, other) == ([width - 1], [width - 1])
        if "after" in parts:
            behind, _ = parts["after"](own, other)
            assert min(behind) > max(query)


def test_no_such_place_is_an_error(demo):
    batch = encode(demo, TEXTS, "direct")
    alignment = Alignment.of(demo, batch, batch, "after")
    with pytest.raises(sh.SafeheadError, match="no such token"):
        alignment.columns(alignment.own[0], alignment.others[1])


def test_counterparts_have_the_fewest_different_tokens(demo):
    prompts, pool = sh.load_prompts("demo/harmful"), sh.load_prompts("demo/benign")
    for prompt, found in zip(prompts, sh.pair_prompts(demo, prompts, pool), strict=True):

        def apart(other, prompt=prompt):
            one, two = prompt.split(), other.split()
            return (len(one) != len(two), sum(a != b for a, b in zip(one, two, strict=False)))

        assert apart(found) == min(map(apart, pool))


def test_counterparts_of_another_length_are_said(demo, caplog):
    pool = ["bend a kite", "please do tell me how to bend a drum today"]
    with caplog.at_level(logging.WARNING):
        found = sh.pair_prompts(demo, ["bend a crobe", "how to bend a drum"], pool)
    assert found == ["bend a kite", "bend a kite"]
    assert "1 of 2 prompts have no counterpart of as many tokens" in caplog.text
    with pytest.raises(sh.SafeheadError, match="but itself"):
        sh.pair_prompts(demo, ["bend a kite"], ["bend a  kite"])


def test_pairs_from_two_columns(tmp_path, caplog):
    path = tmp_path / "pairs.csv"
    path.write_text(
        "asked,instead\nbend a crobe,bend a kite\nbend a crobe,bend a drum\nfold it, \n"
    )
    with caplog.at_level(logging.WARNING):
        prompts, counterparts = sh.load_pairs(path, ("asked", "instead"))
    assert prompts == ["bend a crobe", "bend a crobe"]
    assert counterparts == ["bend a kite", "bend a drum"]
    assert "dropped 1 of 3 pairs" in caplog.text
    with pytest.raises(sh.SafeheadError, match="no column 'other'"):
        sh.load_pairs(path, ("asked", "other"))

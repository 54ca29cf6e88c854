import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from safehead_tl.heads import parse_heads


@pytest.mark.parametrize(
    "spelling",
    ["L2H26", "l2h26", "2.26", "2-26", "(2, 26)", "2,26", (2, 26), [2, 26], sh.Head(2, 26)],
)
def test_every_spelling_is_the_same_head(spelling):
    assert sh.Head.parse(spelling) == sh.Head(2, 26)


def test_printed_and_read_back():
    head = sh.Head(layer=2, head=26)
    assert str(head) == "L2H26"
    assert repr(head) == "Head(layer=2, head=26)"
    assert sh.Head.parse(str(head)) == head


@pytest.mark.parametrize(
    "nonsense", ["H2L26", "L2", "", "2.26.1", (1, 2, 3), (1.5, 2), (-1, 2), 3, None]
)
def test_what_is_not_a_head_is_named(nonsense):
    with pytest.raises(sh.SafeheadError, match="is not a head"):
        sh.Head.parse(nonsense)


def test_one_head_or_several():
    assert parse_heads("L1H3", 4, 8) == parse_heads((1, 3), 4, 8) == (sh.Head(1, 3),)
    assert parse_heads(["L1H3", (0, 2), sh.Head(1, 3)], 4, 8) == (sh.Head(1, 3), sh.Head(0, 2))


@pytest.mark.parametrize(
    "text", ["L1H3 L2H6", "L1H3, L2H6", " 1.3,2.6 ", "1-3\nL2H6;", "L1H3 L1H3 2.6"]
)
def test_several_heads_in_a_text(text):
    assert parse_heads(text, 4, 8) == (sh.Head(1, 3), sh.Head(2, 6))


@pytest.mark.parametrize("text", ["", " ", ",", "L1H3 and L2H6"])
def test_a_text_that_does_not_name_heads(text):
    with pytest.raises(sh.SafeheadError, match="is not a head"):
        parse_heads(text, 4, 8)


@pytest.mark.parametrize(
    "heads",
    [
        np.array([[1, 3], [2, 6]]),
        torch.tensor([[1, 3], [2, 6]]),
        [(np.int64(1), np.int64(3)), (2, 6)],
        [(sh.Head(1, 3), 0.83), (sh.Head(2, 6), 0.7)],
        (head for head in ("L1H3", "L2H6")),
    ],
)
def test_heads_as_other_libraries_and_our_own_scores_give_them(heads):
    assert parse_heads(heads, 4, 8) == (sh.Head(1, 3), sh.Head(2, 6))


def test_one_head_as_an_array():
    assert parse_heads(np.array([1, 3]), 4, 8) == (sh.Head(1, 3),)


def test_a_list_within_a_list_is_not_a_head_with_its_score():
    group = (sh.Head(1, 3), sh.Head(2, 6))
    for nested in ([group], [list(group)]):
        with pytest.raises(sh.SafeheadError, match="is not a head"):
            parse_heads(nested, 4, 8)
    assert parse_heads(group, 4, 8) == group


@pytest.mark.parametrize("nothing", [None, 3])
def test_what_is_no_list_of_heads(nothing):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"not a list of heads|None|3"):
        parse_heads(nothing, 4, 8)


def test_a_head_outside_the_model_is_named():
    with pytest.raises(sh.SafeheadError, match="L4H0 does not exist: the model has layers 0 to 3"):
        parse_heads(["L4H0"], 4, 8)

import math

import numpy as np
import pytest
import torch

from safehead_tl.lessons import compare, unanswered

RIGHT = torch.tensor([0.3, 1e-9, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_an_answer_is_taken_to_the_precision_of_its_dtype(dtype):
    compare("thirds", torch.tensor([1 / 3, 2 / 3]).to(dtype), torch.tensor([1 / 3, 2 / 3]))
    with pytest.raises(AssertionError, match=r"thirds: this is twice as much$"):
        compare("thirds", (2 * RIGHT).to(dtype), RIGHT, {"twice as much": 2 * RIGHT}, atol=1e-6)


def test_what_a_dtype_cannot_hold_is_refused_by_its_name():
    without = {"without small numbers": RIGHT.where(RIGHT > 0.1, 0.0)}
    with pytest.raises(AssertionError, match=r"small: off by what torch\.float16 rounds: compute"):
        compare("small", RIGHT.half(), RIGHT, without)
    with pytest.raises(AssertionError, match=r"small: this is without small numbers$"):
        compare("small", RIGHT.half().double(), RIGHT, without)
    with pytest.raises(AssertionError, match=r"one: off by what torch\.float16 rounds"):
        compare("one", torch.tensor(1e-9).half(), 1e-9)
    off = torch.tensor([0.31, 1e-9, 0], dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"off \(one is 0\.31 where it should be 0\.3\)$"):
        compare("large", off, RIGHT, {}, "off")


@pytest.mark.parametrize("answer", [(0.1, 0.5), [0.1, 0.5], np.float32([0.1, 0.5])])
def test_numbers_of_all_kinds_are_taken(answer):
    compare("two", answer, (0.1, 0.5))
    compare("two", torch.tensor([0.1, 0.5]), (0.1, 0.5))
    with pytest.raises(AssertionError, match="two: this is the other way round"):
        compare("two", answer, (0.5, 0.1), {"the other way round": (0.1, 0.5)})


def test_numbers_alone_are_taken():
    compare("one", 3, 3.0, rtol=0)
    compare("one", True, 1)
    compare("infinite", math.inf, math.inf)
    with pytest.raises(AssertionError, match=r"inf where it should be 2"):
        compare("finite", math.inf, 2)
    with pytest.raises(AssertionError, match=r"1000 where it should be 1001"):
        compare("count", 1000, 1001, rtol=0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "nothing comes back. Is there a `return`"),
        ([0.3, 1e-9, 0.0], "list comes back, and should be a tensor"),
        (RIGHT[:2], r"the shape is \[2\], and should be \[3\]"),
        (RIGHT / RIGHT, "1 of 3 numbers are NaN: is 0 divided by 0"),
        (RIGHT[:1], "this is the first"),
    ],
)
def test_what_is_no_answer_is_refused_with_a_sentence(answer, said):
    with pytest.raises(AssertionError, match=f"three: {said}"):
        compare("three", answer, RIGHT, {"the first": RIGHT[:1]})
    with pytest.raises(AssertionError, match=r"'0\.3' comes back, and should be numbers"):
        compare("one", "0.3", 0.3)


def test_a_mistake_with_the_right_value_is_not_named():
    compare("symmetrical", 1.0, 1.0, {"the other way round": 1.0})


def test_only_a_stub_is_unanswered(caplog):
    def stub():
        """Says what to do."""
        raise NotImplementedError("your code here")

    def wrong():
        result = 0
        raise NotImplementedError(result)

    def empty():
        """Says what to do."""

    assert unanswered(stub)
    assert caplog.messages == ["stub is unanswered: here the solution is used."]
    assert not unanswered(wrong)
    assert not unanswered(empty)
    assert len(caplog.messages) == 1

"""How the highest heads change places, on a model with a backup, and by hand."""

import copy
import dataclasses

import pytest
import torch

import safehead_tl as sh
from families import QUIET, hooked_only
from safehead_tl.ground_truth import compiled

TOLD = {"template": "chat", "ablation": "zero", "run": QUIET}


def rows(figure):
    """Each head's place on the left and on the right, as its line has it."""
    return {line.hovertext[0].split(":")[0]: tuple(line.y) for line in figure.data}


@hooked_only
def test_a_backup_rises_when_the_first_is_gone(harmful):
    made = compiled("backup", 0)
    first, backup = made.carriers
    before = sh.ships(made.model, harmful[:12], **TOLD)
    without = copy.deepcopy(made.model)
    with torch.no_grad():
        without.blocks[first.layer].attn.W_O[first.head] = 0
    after = sh.ships(without, harmful[:12], **TOLD)
    assert before[backup] < 0.01
    assert after.top(1)[0][0] == backup
    assert after[backup] > 1
    left, right = rows(before.slope(after, 4))[str(backup)]
    assert right == 0 < left


def scores(values, measure="ships"):
    demo = sh.ships(sh.load_model("demo"), ["how do i bend a kite"], run=QUIET)
    made = torch.tensor(values)
    return dataclasses.replace(demo, measure=measure, values=made, per_prompt=None)


def test_ranks_lines_and_labels():
    one = scores([[4.0, 3.0, 2.0], [1.0, 0.5, float("nan")]])
    other = scores([[0.5, 5.0, 0.25], [1.0, 0.125, 4.0]])
    figure = one.slope(other, 2, names=("a <b>", "after"))
    assert rows(figure) == {"L0H0": (0, 2), "L0H1": (1, 0), "L1H2": (2, 1)}
    colours = {line.hovertext[0].split(":")[0]: line.line.color for line in figure.data}
    assert len(set(colours.values())) == 2
    assert colours["L0H1"] == colours["L1H2"] != colours["L0H0"]
    said = [note.text for note in figure.layout.annotations]
    assert "L0H0  1.  4" in said
    assert "L0H0  4.  0.5" in said
    assert "L1H2  no score" in said
    assert "<b>a &lt;b&gt;</b>" in said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (scores([[1.0, 2.0]]), "layers and heads"),
        (scores([[1.0, 2.0, 3.0]], "generalized_ships"), "differ in their measure"),
    ],
)
def test_scans_that_cannot_be_compared(other, said):
    with pytest.raises(sh.SafeheadError, match=said):
        scores([[1.0, 2.0, 3.0]]).slope(other)

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from plotly.colors import sample_colorscale, unlabel_rgb

import safehead_tl as sh
from families import QUIET
from made import scan
from safehead_tl.figures.shades import Shades

ROOT = Path(__file__).parents[2]
SCALES = ("linear", "sqrt", "log", "rank")
NUMBERS = [0.0, 3e-6, 2e-4, 0.01, 0.01, 0.3, 0.7]


def expected(numbers, scale):
    """Shares of the way from dark to bright, by numpy."""
    sizes = np.abs(np.array(numbers))
    part = sizes / sizes.max()
    if scale == "log":
        with np.errstate(divide="ignore"):
            return np.clip(1 + np.log10(part) / 4, 0, 1)
    if scale == "rank":
        return np.array([(sizes < size).sum() for size in sizes]) / (len(sizes) - 1)
    return part if scale == "linear" else np.sqrt(part)


@pytest.mark.parametrize("scale", SCALES)
def test_where_numbers_are_on_the_scale(scale):
    shades = Shades.of(NUMBERS, scale)
    assert [shades(number) / 0.7 for number in NUMBERS] == pytest.approx(expected(NUMBERS, scale))
    assert shades(-0.3) == 0
    assert shades(0.9) == pytest.approx(0.7)
    assert math.isnan(shades(math.nan))
    signed = [-0.7, -3e-6, 0.01, 0.3]
    shades = Shades.of(signed, scale, signed=True)
    assert [shades(number) / 0.7 for number in signed] == pytest.approx(
        expected(signed, scale) * np.sign(signed)
    )
    assert shades.trace()["zmin"] == -shades.trace()["zmax"] == -0.7


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("scale", SCALES[1:])
def test_the_scale_has_true_numbers_on_it(scale, signed):
    shades = Shades.of(NUMBERS, scale, signed=signed)
    ticks = shades.ticks()
    numbers = [float(text.strip("≤ ").replace("−", "-")) for text in ticks["ticktext"]]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 0.7
    assert len(numbers) >= 4
    assert [shades(number) for number in numbers] == pytest.approx(ticks["tickvals"], abs=0.003)
    places = np.diff(ticks["tickvals"])
    assert places.min() > 0.05 * shades.top
    assert ("≤" in "".join(ticks["ticktext"])) == (scale == "log")
    assert (min(numbers) == -0.7) == signed
    assert Shades.of(NUMBERS, "linear", signed=signed).ticks() == {}


def test_nothing_and_zeros_have_a_scale_too():
    for numbers in ([], [0.0, 0.0]):
        for scale in SCALES:
            shades = Shades.of(numbers, scale)
            assert shades(0.0) == 0
            assert shades.trace()["zmax"] == 1
            shades.bar("nats")


def test_no_such_scale():
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="cube"):
        scan().heatmap(scale="cube")


@pytest.mark.parametrize("scale", SCALES)
def test_heatmaps_have_the_colours_that_are_asked_for(scale):
    scores = scan()
    trace = scores.heatmap(scale=scale).data[0]
    shares = expected(scores.values.flatten().tolist(), scale)
    assert np.array(trace.z).flatten() / trace.zmax == pytest.approx(shares)
    assert trace.zmax == scores.top(1)[0][1]
    best, score = scores.top(1)[0]
    assert f"{score:.4g} (mean KL, nats)" in trace.text[best.layer][best.head]
    words = {"linear": "mean KL, nats", "log": "mean KL, nats<br>colours by logarithm",
             "sqrt": "mean KL, nats<br>square-root colours",
             "rank": "mean KL, nats<br>colours by rank"}  # fmt: skip
    assert trace.colorbar.title.text == words[scale]
    others = scan(seed=1)
    together = sh.heatmaps({"a": scores, "b": others}, shared_scale=True, scale=scale)
    both = torch.cat([scores.values, others.values])
    drawn = [trace for trace in together.data if trace.type == "heatmap"]
    assert np.array([trace.z for trace in drawn]).flatten() / both.max().item() == pytest.approx(
        expected(both.flatten().tolist(), scale)
    )
    assert words[scale] in [note.text for note in together.layout.annotations]


def test_the_usual_scale_is_by_square_root_but_for_shares_of_responses():
    scores = scan()
    assert scores.heatmap().data[0].z == scores.heatmap(scale="sqrt").data[0].z
    rates = scan(measure="asr", unit="rate")
    assert rates.heatmap().data[0].z == rates.heatmap(scale="linear").data[0].z
    both = sh.heatmaps({"Ships": scores, "ASR": rates})
    assert both.data[0].z == scores.heatmap(scale="sqrt").data[0].z
    assert both.data[1].z == rates.heatmap(scale="linear").data[0].z


def lab(colours):
    """Colours in CIELAB, from red, green and blue up to 255."""
    part = np.array(colours) / 255
    part = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
              [0.0193339, 0.1191920, 0.9503041]]  # fmt: skip
    xyz = part @ np.array(to_xyz).T / [0.95047, 1, 1.08883]
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize("name", ["demo", "demo-natural"])
def test_how_many_cells_can_be_told_from_the_darkest_is_what_the_docs_say(name, harmful):
    scores = sh.ships(sh.load_model(name), harmful, template="chat", run=QUIET)
    found = []
    for scale in SCALES:
        trace = scores.heatmap(scale=scale).data[0]
        shares = np.array(trace.z).flatten() / trace.zmax
        drawn = [unlabel_rgb(each) for each in sample_colorscale("Cividis", [0.0, *shares])]
        told = np.linalg.norm(lab(drawn)[1:] - lab(drawn)[0], axis=1) >= 5
        bright = (scores.values.numpy().flatten() < 0.01 * trace.zmax) & (shares > 0.5)
        found.append(f"{told.sum()} ({bright.sum()})")
    row = f"| `{name}`, 4 × 8 | {' | '.join(found)} |"
    assert row in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")

import dataclasses
import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

import safehead_tl as sh
from families import QUIET
from made import scan
from safehead_tl.figures.side_by_side import heatmaps
from safehead_tl.figures.style import COLOURS, lay_out, plain

PLANTED = ["L1H3", "L2H6"]


@pytest.fixture(scope="module")
def scores(demo, harmful):
    return sh.ships(demo, harmful[:8], template="chat", run=QUIET)


@pytest.fixture(scope="module")
def group(demo, harmful):
    return sh.sahara(demo, harmful[:8], size=3, template="chat", run=QUIET)


def title(figure):
    """A figure's header as one line."""
    return figure.layout.title.text.replace("<br>", " ")


def shown(figure):
    """A figure goes through JSON, fits its margins, and says what it is."""
    again = go.Figure(figure.to_plotly_json())
    margin = again.layout.margin
    assert again.layout.width > margin.l + margin.r
    assert again.layout.height > margin.t + margin.b
    assert again.layout.title.text
    return figure.to_json()


def test_every_figure_is_drawn_the_same_again(scores, group):
    for draw in (scores.heatmap, scores.bars, scores.strips, group.figure):
        assert shown(draw()) == shown(draw())


@pytest.mark.parametrize("statistic", ["mean", "max"])
def test_bars_of_layers_beside_the_heatmap(statistic):
    found = scan()
    found.values[1, 2:] = math.nan
    found.values[3] = math.nan
    bars = found.heatmap(marginals=statistic).data[1]
    assert isinstance(bars, go.Bar)
    take = {"mean": np.nanmean, "max": np.nanmax}[statistic]
    assert list(bars.x[:3]) == pytest.approx([take(row) for row in found.values.numpy()[:3]])
    assert bars.x[3] is None
    assert list(bars.y) == [0, 1, 2, 3]
    assert bars.xaxis == "x2"
    word = {"mean": "mean in layer", "max": "highest in layer"}[statistic]
    assert found.heatmap(marginals=statistic).layout.xaxis2.title.text == word
    assert found.heatmap().data[1].x == found.heatmap(marginals="mean").data[1].x
    assert len(found.heatmap(marginals=False).data) == 1


def test_kv_groups_are_drawn(scores):
    figure = scan(heads=12, kv=3).heatmap(marked="L0H0")
    lines = figure.data[-1]
    assert (lines.mode, lines.xaxis, lines.yaxis) == ("lines", "x3", "y")
    assert [x for x in lines.x if x is not None] == [3.5, 3.5, 7.5, 7.5]
    above = figure.layout.xaxis3
    assert (above.side, above.matches, above.overlaying) == ("top", "x", "x")
    assert list(above.tickvals) == [1.5, 5.5, 9.5]
    assert list(above.ticktext) == ["0", "1", "2"]
    assert above.title.text == "KV group (of 4 query heads)"
    assert "KV group 2: heads 8 to 11" in figure.data[0].text[0][9]
    assert "xaxis3" not in scores.heatmap().layout
    many = scan(heads=128, kv=64).heatmap(marginals=False)
    apart = (many.layout.width - many.layout.margin.l - many.layout.margin.r) / 128
    first, second = many.layout.xaxis3.tickvals[:2]
    assert 18 <= (second - first) * apart < 36


@pytest.mark.parametrize(
    ("layers", "heads", "gap", "step"),
    [
        (4, 8, 1, (1, 1)),
        (32, 32, 0, (2, 1)),
        (80, 64, 0, (4, 2)),
        (2, 128, 0, (8, 1)),
        (1, 1, 1, (1, 1)),
    ],
)
def test_heatmaps_of_all_sizes(layers, heads, gap, step):
    figure = scan(layers, heads, kv=heads).heatmap()
    assert (figure.data[0].xgap, figure.data[0].ygap) == (gap, gap)
    assert (figure.layout.xaxis.dtick, figure.layout.yaxis.dtick) == step
    assert figure.layout.width <= 900
    assert figure.layout.height <= 1100
    assert (figure.layout.yaxis.minallowed, figure.layout.yaxis.maxallowed) == (-0.5, layers - 0.5)


def test_many_marked_heads_are_counted():
    marked = [(layer, head) for layer in range(2) for head in range(6)]
    header = title(scan().heatmap(marked, marked_as="<found> & kept", top=0))
    assert "cross: &lt;found&gt; &amp; kept (L0H0, L0H1" in header
    assert "L1H1 and 4 more)" in header
    assert "outlined" not in header


def test_titles_hold_the_measure_ablation_model_prompts_and_template():
    header = title(scan(measure="generalized_ships").heatmap())
    assert "Generalized Ships under undifferentiated attention (epsilon 1e-05)" in header
    assert "some-model, 6 prompts, template 'chat'" in header
    assert "rank 1, uncentred, after the final norm" in header
    written = title(scan(template="<|user|>{query}<|end|>", prompts=1).bars())
    assert "1 prompt, template '&lt;|user|&gt;{query}&lt;|end|&gt;'" in written
    assert len(plain("x" * 500)) < 70


def test_long_headers_are_broken_between_notes():
    figure = lay_out(go.Figure(), "A title", [f"note {'x' * 40} {n}" for n in range(3)],
                     plot=(360, 200))  # fmt: skip
    lines = figure.layout.title.text.split("<br>")
    assert len(lines) == 4
    assert all(f"{n}" in line and "note" in line for n, line in enumerate(lines[1:]))
    short = lay_out(go.Figure(), "A title", ["a", "b"], plot=(360, 200))
    assert short.layout.margin.t < figure.layout.margin.t
    assert short.layout.height < figure.layout.height
    assert "a; b" in short.layout.title.text


def test_heatmaps_side_by_side():
    scans = {"UA": scan(), "SC": scan(seed=1), "turn": scan(measure="generalized_ships")}
    figure = heatmaps(scans, marked=PLANTED, marked_as="planted", top=2, scale="linear")
    cells = [trace for trace in figure.data if isinstance(trace, go.Heatmap)]
    for trace, found in zip(cells, scans.values(), strict=True):
        assert np.array(trace.z) == pytest.approx(found.values.numpy())
        assert trace.zmax == found.top(1)[0][1]
    assert [trace.xaxis for trace in cells] == ["x", "x2", "x3"]
    crosses = [trace for trace in figure.data if isinstance(trace, go.Scatter)]
    assert [(trace.xaxis, trace.x) for trace in crosses] == [
        (axis, (3, 6)) for axis in ("x", "x2", "x3")
    ]
    frames = [(shape.xref, shape.y0 + 0.5, shape.x0 + 0.5) for shape in figure.layout.shapes]
    assert frames == [
        (trace.xaxis, *head)
        for trace, found in zip(cells, scans.values(), strict=True)
        for head, _ in found.top(2)
    ]
    texts = [note.text for note in figure.layout.annotations]
    assert sum(text.startswith("<b>UA</b><br>Ships under") for text in texts) == 1
    assert sum("rank 1, uncentred" in text for text in texts) == 1
    assert texts.count("mean KL, nats") == 2
    assert "Scores, side by side" in title(figure)
    assert "some-model, 6 prompts, template 'chat'; each with its own scale" in title(figure)
    assert "cross: planted (L1H3, L2H6)" in title(figure)
    shown(figure)


@pytest.mark.parametrize(("scans", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2)])
def test_heatmaps_fit_a_notebook_and_are_spread_evenly(scans, rows):
    figure = heatmaps({f"scan {number}": scan(seed=number) for number in range(scans)})
    starts = [
        figure.layout[f"xaxis{number or ''}"].domain[0] for number in (0, *range(2, scans + 1))
    ]
    assert len(set(starts)) == scans // rows
    assert figure.layout.width <= 900


def test_heatmaps_on_one_scale():
    scans = {"a": scan(), "b": scan(seed=1)}
    figure = heatmaps(scans, shared_scale=True)
    highest = max(found.top(1)[0][1] for found in scans.values())
    assert {trace.zmax for trace in figure.data if isinstance(trace, go.Heatmap)} == {highest}
    assert "Ships under undifferentiated attention (epsilon 1e-05)" in title(figure)
    assert "one scale for all" in title(figure)


def test_heatmaps_with_kv_groups_and_in_rows():
    scans = {f"scan {number}": scan(8, 64, kv=8, seed=number) for number in range(5)}
    figure = heatmaps(scans)
    lines = [trace for trace in figure.data if isinstance(trace, go.Scatter)]
    assert [trace.xaxis for trace in lines] == [f"x{number}" for number in range(101, 106)]
    boxes = [
        (axes["xaxis"].domain, axes["yaxis"].domain)
        for axes in (
            {kind: figure.layout[f"{kind}{number}"] for kind in ("xaxis", "yaxis")}
            for number in ("", 2, 3, 4, 5)
        )
    ]
    for number, (across, up) in enumerate(boxes):
        for other_across, other_up in boxes[:number]:
            beside = across[0] >= other_across[1] or across[1] <= other_across[0]
            assert beside or up[1] < other_up[0]
    shown(figure)


def test_scans_that_do_not_go_side_by_side():
    with pytest.raises(sh.SafeheadError, match="no scans"):
        heatmaps({})
    with pytest.raises(sh.SafeheadError, match="'a' has 4 layers of 8 heads, and 'b' 3 of 8"):
        heatmaps({"a": scan(), "b": scan(3)})
    with pytest.raises(sh.SafeheadError, match="'a' is in nats, and 'b' in radians"):
        heatmaps({"a": scan(), "b": scan(measure="generalized_ships")}, shared_scale=True)
    with pytest.raises(sh.SafeheadError, match="L5H0 does not exist"):
        heatmaps({"a": scan()}, marked="L5H0")


def test_bars_are_ranked_with_intervals_of_medians(scores):
    figure = scores.bars(5, marked=PLANTED, marked_as="planted")
    ranked = scores.top(5)
    marked, others, medians = figure.data
    assert (marked.name, others.name) == ("planted", "other heads")
    assert (marked.marker.color, others.marker.color) == (COLOURS["marked"], COLOURS["score"])
    assert list(figure.layout.yaxis.ticktext) == [str(head) for head, _ in ranked]
    for trace in (marked, others):
        for x, y, text in zip(trace.x, trace.y, trace.hovertext, strict=True):
            assert x == ranked[y][1]
            assert text.startswith(f"<b>{ranked[y][0]}</b><br>{x:.4g} (")
    for (head, _), x, more, less in zip(
        ranked, medians.x, medians.error_x.array, medians.error_x.arrayminus, strict=True
    ):
        samples = scores.per_prompt[:, head.layer, head.head].double().numpy()
        assert x == pytest.approx(np.median(samples))
        assert (x - less, x + more) == (pytest.approx(samples.min()), pytest.approx(samples.max()))
    assert "Ships under undifferentiated attention" in title(figure)
    assert "the 5 highest of 32 heads" in title(figure)
    assert "means over 8 prompts; diamonds: medians, with 95 % intervals" in title(figure)
    assert "KV group 1" in scan(kv=2).bars(32).data[0].hovertext[
        [head.head > 3 for head, _ in scan(kv=2).ranked()].index(True)
    ]  # fmt: skip


def test_bars_of_few_prompts_show_the_prompts(scores):
    few = dataclasses.replace(scores, per_prompt=scores.per_prompt[:5])
    dots = few.bars(2).data[-1]
    assert len(dots.x) == 10
    assert dots.error_x.array is None
    assert "the 5 prompts, too few for an interval" in title(few.bars(2))


def test_bars_without_intervals_say_so():
    figure = scan(measure="generalized_ships").bars(3)
    (bars,) = figure.data
    assert bars.error_x.array is None
    assert "one score for all prompts together, so no interval" in title(figure)
    assert figure.layout.xaxis.title.text == "sum of angles, radians"


@pytest.mark.parametrize("log", [False, True])
def test_strips_hold_each_prompts_score(scores, log):
    figure = scores.strips(3, log=log)
    dots, means = figure.data
    heads = [head for head, _ in scores.top(3)]
    expected = [scores.per_prompt[:, head.layer, head.head] for head in heads]
    assert list(dots.x) == pytest.approx(torch.cat(expected).tolist())
    rows = np.array(dots.y).reshape(3, 8)
    assert np.abs(rows - [[0], [1], [2]]).max() <= 0.3
    assert len(set(rows[0])) == 8
    assert list(means.x) == [score for _, score in scores.top(3)]
    assert dots.hovertext[1].startswith(f"<b>{heads[0]}</b><br>prompt 1: ")
    assert figure.layout.xaxis.type == ("log" if log else None)
    assert "prompt by prompt" in title(figure)


def test_scores_that_a_logarithm_cannot_show_are_counted():
    found = scan()
    found.per_prompt[0, :, :] = 0.0
    figure = found.strips(4, log=True)
    assert min(figure.data[0].x) == 1e-9
    assert "4 of 24 scores are below 1e-9" in title(figure)
    assert min(found.strips(4).data[0].x) == 0
    assert "below" not in title(found.strips(4))


def test_what_bars_and_strips_cannot_draw(scores):
    with pytest.raises(sh.SafeheadError, match="it has none for each to draw"):
        scan(measure="generalized_ships").strips()
    for draw in (scores.bars, scores.strips):
        with pytest.raises(sh.SafeheadError, match="top=0: ask for 1 head or more"):
            draw(0)
        with pytest.raises(sh.SafeheadError, match="L7H7 does not exist"):
            draw(marked="L7H7")


def test_saharas_path(group):
    figure = group.figure()
    _, chosen, seconds = figure.data
    assert list(chosen.x) == [1, 2, 3]
    assert list(chosen.y) == group.scores
    assert list(chosen.text) == [f"<b>+ {head}</b>" for head in group.heads]
    table = group.to_frame().query("rank == 2").sort_values("step")
    assert list(seconds.text) == table["name"].tolist()
    assert list(seconds.y) == table["score"].tolist()
    step = group.scores[1] - group.scores[0]
    assert f"{step:+.4g} rad by this head" in chosen.hovertext[1]
    assert figure.layout.yaxis.title.text == "generalized Ships, radians"
    assert "Sahara: the head that each step adds, under undifferentiated" in title(figure)
    assert "8 prompts, template 'chat'" in title(figure)
    assert "(rank 1, uncentred, after the final norm)" in title(figure)


def test_sahara_without_runners_up(demo, harmful):
    only = sh.sahara(demo, harmful[:3], size=2, candidates=PLANTED, run=QUIET)
    assert len(only.figure().data[2].x) == 1
    shown(only.figure())

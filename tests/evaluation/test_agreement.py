import itertools
import json
import math
import random

import plotly.graph_objects as go
import pytest
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.evaluation.agreement import hypergeometric, overlap
from safehead_tl.results.correlation import kendall, spearman

SIZES = {"n_heads": 4, "n_key_value_heads": 4}
PROVENANCE = sh.Provenance.now(SIZES, {"label": "x"}, {"prompt_count": 1}, {}, 0.0, 0.0)


def scan(values):
    return sh.HeadScores("ships", "nats", torch.as_tensor(values), None, (), PROVENANCE)


def of_ranks(*order, shape=(3, 4)):
    """A scan in which these heads, by their number, come first in this order."""
    values = torch.zeros(math.prod(shape))
    for place, head in enumerate(order):
        values[head] = 10.0 - place
    rest = [head for head in range(len(values)) if head not in order]
    for place, head in enumerate(rest):
        values[head] = -1.0 - place
    return scan(values.view(shape))


def test_sets_that_are_known():
    scans = {"a": of_ranks(0, 1, 2), "b": of_ranks(2, 5, 0), "c": of_ranks(7, 8, 9)}
    found = overlap(scans, top=3)
    assert [(p.first, p.second, p.shared) for p in found.pairs] == [
        ("a", "b", 2), ("a", "c", 0), ("b", "c", 0)]  # fmt: skip
    assert found.pairs[0].heads == (sh.Head(0, 0), sh.Head(0, 2))
    assert [p.jaccard for p in found.pairs] == [2 / 4, 0, 0]
    assert found.tops["b"] == (sh.Head(0, 2), sh.Head(1, 1), sh.Head(0, 0))
    assert found.in_all == ()
    assert overlap({"a": scans["a"], "b": scans["b"]}, top=3).in_all == found.pairs[0].heads
    assert found.pairs[1].p_at_least == 1
    assert "a and b 2" in repr(found)


@pytest.mark.parametrize(("total", "k"), [(6, 2), (7, 3), (5, 5), (8, 1)])
def test_chance_against_all_sets(total, k):
    """One set stays where it is; the other goes through all that there are."""
    mine = set(range(k))
    shared = [len(mine & set(other)) for other in itertools.combinations(range(total), k)]
    chances = hypergeometric(total, k, k)
    assert [float(chance) for chance in chances] == pytest.approx(
        [shared.count(size) / len(shared) for size in range(k + 1)]
    )
    order = [*range(k)]
    found = overlap({"a": of_ranks(*order, shape=(1, total)),
                     "b": of_ranks(*order[1:], total - 1, shape=(1, total))}, top=k)  # fmt: skip
    assert found.expected_shared == pytest.approx(sum(shared) / len(shared))
    indices = [size / (2 * k - size) for size in shared]
    assert found.expected_jaccard == pytest.approx(sum(indices) / len(indices))
    (pair,) = found.pairs
    as_many = sum(size >= pair.shared for size in shared) / len(shared)
    assert pair.p_at_least == pytest.approx(as_many)


def test_chance_by_shuffling():
    """The highest scores once at all places, shuffled: the averages are what is promised."""
    drawn, counts, jaccards, first = random.Random(0), [], [], of_ranks(0, 1, 2, 3)
    for top in itertools.combinations(range(12), 4):
        places = [*drawn.sample(top, 4), *drawn.sample(sorted({*range(12)} - {*top}), 8)]
        values = torch.empty(12)
        values[places] = torch.arange(12.0).flip(0)
        found = overlap({"a": first, "b": scan(values.view(3, 4))}, top=4)
        counts.append(found.pairs[0].shared)
        jaccards.append(found.pairs[0].jaccard)
    assert len(counts) == 495
    assert sum(counts) / 495 == pytest.approx(found.expected_shared)
    assert sum(jaccards) / 495 == pytest.approx(found.expected_jaccard)
    two = float(sum(hypergeometric(12, 4, 4)[2:]))
    assert sum(count >= 2 for count in counts) / 495 == pytest.approx(two)


def test_chance_within_layers_against_all_tops():
    """One top stays; the other goes through all with as many heads in each layer."""
    mine, yours = (0, 1, 5, 8), (0, 6, 7, 9)  # of three layers of four
    found = overlap({"a": of_ranks(*mine), "b": of_ranks(*yours)}, top=4)
    layers = [[head for head in yours if head // 4 == layer] for layer in range(3)]
    drawn = itertools.product(
        *(itertools.combinations(range(4 * n, 4 * n + 4), len(own)) for n, own in enumerate(layers))
    )
    shared = [len(set(mine) & set(sum(parts, ()))) for parts in drawn]
    (pair,) = found.pairs
    assert pair.shared == 1
    assert pair.expected_by_layer == pytest.approx(sum(shared) / len(shared))
    assert pair.p_by_layer == pytest.approx(sum(n >= 1 for n in shared) / len(shared))
    first = overlap({"a": of_ranks(0, 1, 2), "b": of_ranks(0, 1, 3)}, top=3)
    assert first.pairs[0].p_at_least < 0.15
    assert first.pairs[0].p_by_layer == 1, "three of four heads of a layer always share two"


def test_a_chance_too_small_for_sums_of_floats():
    found = overlap({"a": of_ranks(*range(10), shape=(32, 32)),
                     "b": of_ranks(*range(10), shape=(32, 32))})  # fmt: skip
    assert found.pairs[0].p_at_least == pytest.approx(1 / math.comb(1024, 10), rel=1e-12)
    assert found.expected_shared == 100 / 1024


def test_rank_correlations_that_are_known():
    up, down = torch.arange(5.0), torch.arange(5.0).neg()
    for correlation in (spearman, kendall):
        assert correlation(up, up.exp()) == pytest.approx(1)
        assert correlation(up, down) == pytest.approx(-1)
        assert math.isnan(correlation(up, torch.ones(5)))
    one, other = torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 3, 2, 3])
    # Average ranks 1, 2.5, 2.5, 4 and 1, 3.5, 2, 3.5. Of 6 pairs 4 agree; each has one tie.
    assert spearman(one, other) == pytest.approx(3.75 / 4.5)
    assert kendall(one, other) == pytest.approx(4 / 5)


def test_rank_correlations_by_hand():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        one, other = torch.randint(5, (2, 9), generator=generator).double()
        pairs = list(itertools.combinations(range(9), 2))

        def sign(values, pair):
            return int(values[pair[0]] > values[pair[1]]) - int(values[pair[0]] < values[pair[1]])

        both = [(sign(one, pair), sign(other, pair)) for pair in pairs]
        untied = math.prod(sum(x[side] != 0 for x in both) for side in (0, 1))
        assert kendall(one, other) == pytest.approx(sum(x * y for x, y in both) / untied**0.5)
        ranks = [
            [sum(v < x for v in row) + (sum(v == x for v in row) + 1) / 2 for x in row]
            for row in (one.tolist(), other.tolist())
        ]
        expected = torch.corrcoef(torch.tensor(ranks))[0, 1]
        assert spearman(one, other) == pytest.approx(float(expected))


def test_heads_that_one_did_not_score_are_left_out():
    with_gap = of_ranks(0, 1, 2)
    with_gap.values[0, 0] = math.nan
    found = overlap({"a": of_ranks(0, 1, 2), "b": with_gap}, top=2)
    assert found.n_heads == 11
    assert found.tops["a"] == (sh.Head(0, 1), sh.Head(0, 2)) == found.tops["b"]
    assert found.pairs[0].spearman == pytest.approx(1)
    assert found.expected_shared == 4 / 11


def test_a_table_and_plain_values():
    scans = {"a": of_ranks(0, 1, 2), "b": of_ranks(2, 5, 0), "even": scan(torch.ones(3, 4))}
    found = overlap(scans, top=3)
    table = found.to_frame()
    assert list(table)[:6] == ["first", "second", "top", "n_heads", "shared", "jaccard"]
    assert table.loc[0, ["first", "second", "shared", "heads"]].tolist() == [
        "a", "b", 2, "L0H0 L0H2"]  # fmt: skip
    assert table["spearman"].isna().tolist() == [False, True, True]
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["pairs"][1]["spearman"] is None
    assert plain["tops"]["b"] == ["L0H2", "L1H1", "L0H0"]
    assert set(plain["provenances"]) == set(scans)


def test_ties_at_the_end_of_the_top_are_told(caplog):
    overlap({"a": of_ranks(0, 1), "even": scan(torch.ones(3, 4))}, top=3)
    (record,) = caplog.records
    assert "even: L0H2 and L0H3 have the same score" in record.getMessage()


def test_the_figure():
    scans = {"a": of_ranks(0, 1, 2), "b": of_ranks(2, 5, 0), "even": scan(torch.ones(3, 4))}
    figure = overlap(scans, top=3).figure()
    assert isinstance(figure, go.Figure)
    cells, texts = figure.data
    assert [list(row) for row in cells.z] == [[None, 0.5, 1], [0.5, None, 0.5], [1, 0.5, None]]
    assert (cells.zmin, cells.zmax) == (0, 1)
    assert "L0H0, L0H2" in cells.text[0][1]
    written = dict(zip(zip(texts.x, texts.y, strict=True), texts.text, strict=True))
    assert written[0, 1].startswith("<b>2 of 3</b><br>ρ = ")
    assert written[2, 0] == "<b>3 of 3</b><br>ρ undefined"
    assert len(written) == 6
    assert "by chance 0.75 (Jaccard 0.16)" in figure.layout.title.text
    assert list(figure.layout.xaxis.ticktext) == list(scans)


def test_what_cannot_be_compared():
    a = of_ranks(0, 1)
    with pytest.raises(sh.SafeheadError, match="1 scans: give two or more"):
        overlap({"a": a})
    with pytest.raises(sh.SafeheadError, match="'a' has 3 layers of 4 heads, and 'b' 4 of 3"):
        overlap({"a": a, "b": of_ranks(0, shape=(4, 3))})
    for top in (0, 13):
        with pytest.raises(sh.SafeheadError, match=f"top={top}: the top may be 1 to 12 heads"):
            overlap({"a": a, "b": a}, top=top)
    nothing = scan(torch.full((3, 4), math.nan))
    with pytest.raises(sh.SafeheadError, match="1 to 0 heads"):
        overlap({"a": a, "nothing": nothing}, top=1)


def test_the_demo_agrees_with_itself_under_both_ablations(demo, harmful):
    scans = {
        name: sh.ships(demo, harmful[:8], template="chat", ablation=name, run=QUIET)
        for name in ("undifferentiated", "scaling")
    }
    found = overlap(scans, top=2)
    assert set(found.in_all) == {sh.Head(1, 3), sh.Head(2, 6)}
    assert found.pairs[0].p_at_least == pytest.approx(1 / math.comb(32, 2))

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.results.stats import shuffled_p

DRAWS = 99


@pytest.fixture(scope="module")
def benign():
    return sh.load_prompts("demo/benign")


@pytest.fixture(scope="module")
def scans(demo, harmful, benign):
    return tuple(sh.ships(demo, texts, run=QUIET) for texts in (harmful, benign))


def by_hand(first, second):
    """Every way to share the prompts out, one at a time, by scipy's Welch t."""
    pooled = np.concatenate([first, second])

    def welch(chosen):
        inside = np.isin(np.arange(len(pooled)), chosen)
        return scipy.stats.ttest_ind(pooled[inside], pooled[~inside], equal_var=False).statistic

    found = welch(range(len(first)))
    drawn = np.array(
        [welch(chosen) for chosen in itertools.combinations(range(len(pooled)), len(first))]
    )
    p, least = np.empty(len(found)), 0.0
    for head in np.argsort(-found):
        rivals = drawn[:, found <= found[head]].max(1)
        p[head] = least = max(least, (rivals >= found[head] - 1e-9).mean())
    return found, p


@pytest.mark.parametrize(("size", "others"), [(4, 3), (2, 6), (3, 3)])
def test_all_ways_to_share_prompts_out_by_hand(size, others):
    draw = np.random.default_rng(size)
    first, second = draw.normal(size=(size, 5)) ** 3, draw.normal(size=(others, 5))
    first[:, 1] += 2
    found = shuffled_p(torch.tensor(first), torch.tensor(second), 10_000, 0)
    for ours, theirs in zip(found, by_hand(first, second), strict=True):
        assert ours.numpy() == pytest.approx(theirs, rel=1e-6)


def test_drawn_ways_are_near_all_ways():
    draw = torch.Generator().manual_seed(3)
    first, second = (torch.randn(6, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    first[:, 0] += 1.5
    _, every = shuffled_p(first, second, 924, 0)
    (_, some), (_, again) = (shuffled_p(first, second, 923, seed) for seed in (0, 0))
    assert torch.equal(some, again)
    assert 0 < (some - every).abs().max() < 0.06


def test_a_head_that_is_the_same_in_all_prompts_is_never_found():
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(9, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    first[:, 0] = second[:, 0] = 1e-9 * torch.ones(9)
    first[:, 1] += 4
    statistic, p = shuffled_p(first, second, 500, 0)
    assert (statistic[0], statistic.argmax()) == (0, 1)
    assert p[1] == pytest.approx(1 / 501)
    assert p[0] > 0.05
    turned = (first[:, [2, 0]].exp(), second[:, [2, 0]].exp())
    assert shuffled_p(*turned, 500, 0)[1][0] == shuffled_p(*(5 + x for x in turned), 500, 0)[1][0]


def rejected(sizes, spread, skewed=False, times=150):
    """How often one of 30 correlated heads with the same mean in both sets is found."""
    draw, found = torch.Generator().manual_seed(0), 0
    for number in range(times):
        samples = []
        for size, scale in zip(sizes, (spread, 1.0), strict=True):
            shared, own = (
                torch.randn(size, heads, generator=draw, dtype=torch.float64) for heads in (1, 30)
            )
            each = (shared + own) / 2**0.5
            samples.append(scale * (each.exp() - np.exp(0.5) if skewed else each))
        found += int(shuffled_p(*samples, DRAWS, number)[1].min() <= 0.05)
    return found / times


@pytest.mark.parametrize("sizes", [(8, 8), (6, 24), (60, 20)])
@pytest.mark.parametrize("skewed", [False, True])
def test_one_false_head_or_more_once_in_twenty(sizes, skewed):
    """The same law in both sets: exact, whatever the law, the sizes and how heads depend."""
    assert rejected(sizes, 1.0, skewed) < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


def test_what_other_spreads_cost():
    """Only the means are the same: it holds with many prompts, and not with few and unequal."""
    assert rejected((40, 40), 3.0) < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5
    assert rejected((6, 24), 3.0) > 0.1
    assert rejected((8, 8), 1 / 3, skewed=True) > 0.4


def test_true_heads_are_found_among_many_and_cost_the_others_nothing():
    draw, times, missed, false = torch.Generator().manual_seed(0), 100, 0, 0
    for number in range(times):
        first, second = (
            torch.randn(size, 100, generator=draw, dtype=torch.float64) for size in (16, 24)
        )
        first[:, :5] += 2.5
        p = shuffled_p(first, second, DRAWS, number)[1]
        missed += int((p[:5] > 0.05).sum())
        false += int((p[5:] <= 0.05).any())
    assert missed / (5 * times) < 0.02
    assert false / times <= 0.05 + 3 * (0.05 * 0.95 / times) ** 0.5


def test_the_planted_heads_of_the_embedded_model_and_no_others(scans):
    harm, other = scans
    found = harm.significant(other)
    assert set(found.heads) == {sh.Head(1, 3), sh.Head(2, 6)}
    assert harm.significant(other, alpha=0.5).heads[:2] == found.heads
    logs = [scan.per_prompt.clamp(min=1e-9).log().flatten(1).numpy() for scan in scans]
    theirs = scipy.stats.ttest_ind(*logs, equal_var=False).statistic
    assert found.statistic.flatten().numpy() == pytest.approx(theirs, rel=1e-4)
    table = found.to_frame()
    assert table["significant"].sum() == 2
    assert table["name"].tolist() == [str(head) for head, _ in harm.ranked()]
    assert table["against"][0] == other[table["name"][0]]
    assert table["p"].min() == pytest.approx(1 / 10_001)
    assert not set(other.significant(harm).heads) & set(found.heads)
    assert "2 of 32 heads score higher than in 64 other prompts (L1H3, L2H6)" in repr(found)
    assert {row["name"] for row in found.to_dict()["heads"] if row["p"] <= 0.05} == {
        *found.to_dict()["significant"]
    }


def part(scores, rows, name):
    """Some prompts' scores, as a scan of these alone."""
    own = scores.per_prompt[rows]
    told = {**scores.provenance.prompts, "prompt_count": len(own), "each_hash": name}
    provenance = dataclasses.replace(scores.provenance, prompts=told)
    return dataclasses.replace(scores, values=own.mean(0), per_prompt=own, provenance=provenance)


def test_halves_of_the_same_prompts_differ_once_in_twenty(scans):
    draw, times, found = torch.Generator().manual_seed(0), 60, 0
    for number in range(times):
        order = torch.randperm(64, generator=draw)
        one, two = part(scans[0], order[:32], "a"), part(scans[0], order[32:], "b")
        found += bool(one.significant(two, draws=DRAWS, seed=number).heads)
    assert found / times <= 0.05 + 3 * (0.05 * 0.95 / times) ** 0.5


def test_signed_scores_are_compared_as_they_are(demo, harmful, benign):
    openings = sh.Openings.of_answers(demo, harmful, benign)
    first, second = (
        sh.refusal_log_odds(demo, texts[:12], openings, candidates=["L1H3", "L2H6", "L0H0"],
                            run=QUIET)
        for texts in (harmful, benign)
    )  # fmt: skip
    found = first.significant(second)
    assert [str(head) for head in found.heads[:2]] == ["L1H3", "L2H6"]
    samples = [scan.per_prompt[:, 1, 3].numpy() for scan in (first, second)]
    theirs = scipy.stats.ttest_ind(*samples, equal_var=False).statistic
    assert found.statistic[1, 3] == pytest.approx(theirs, rel=1e-4)
    assert found.p.isnan().sum() == 29
    others = sh.Openings.of_texts(demo, ["sorry"], ["bend"])
    again = sh.refusal_log_odds(demo, benign[:12], others, run=QUIET)
    with pytest.raises(sh.SafeheadError, match="another settings"):
        first.significant(again)


def test_scores_from_files_are_compared(scans, tmp_path):
    other = scans[1]
    other.save(tmp_path / "s.safetensors")
    read = sh.HeadScores.load(tmp_path / "s.safetensors")
    found = [scans[0].significant(each, draws=99) for each in (read, other)]
    assert torch.equal(found[0].p, found[1].p)


def test_a_bridge_and_grouped_heads(checkpoint, prompts):
    model = sh.load_model(checkpoint("olmo"), backend="bridge")
    others = [f"{text} again and again" for text in prompts]
    first, second = (
        sh.ships(model, texts, template="direct", run=QUIET) for texts in (prompts, others)
    )
    found = first.significant(second)
    assert found.p.shape == first.values.shape
    assert (found.p >= 0.05).all()


def test_stars_in_bars(scans):
    found = scans[0].significant(scans[1], draws=99)
    figure = found.bars(3, marked="L0H4", marked_as="verb")
    assert [label.endswith(" ★") for label in figure.layout.yaxis.ticktext] == [True, True, False]
    header = figure.layout.title.text.replace("<br>", " ")
    assert "star: higher than in 64 other prompts, p ≤ 0.05 for all heads at once" in header
    assert not any("★" in label for label in scans[0].bars(3).layout.yaxis.ticktext)


def test_what_cannot_be_compared(demo, harmful, benign, scans):
    harm, other = scans
    told = {"run": QUIET, "candidates": ["L1H3", "L0H0"]}
    few = sh.ships(demo, benign[:2], run=QUIET)
    whole = sh.generalized_ships(demo, benign[:4], **told)
    screened = sh.ships(demo, benign[:8], screen=8, run=QUIET)
    mean = [sh.ships(demo, texts[:4], ablation="mean", **told) for texts in (harmful, benign)]
    cases = [
        (harm, benign, {}, "against is a list"),
        (harm, other, {"alpha": 1.0}, "alpha=1.0: give a chance"),
        (harm, other, {"draws": 0}, "draws=0"),
        (harm, other, {"draws": 18}, "no head can have p <= 0.05 in 18 draws"),
        (part(harm, slice(0, 2), "a"), few, {}, "of 2 prompts and 2 others no head can have"),
        (harm, part(other, slice(0, 1), "a"), {"alpha": 0.9}, "at least 2 of either"),
        (whole, whole, {}, "generalized_ships is one score for all prompts"),
        (harm, screened, {}, "scan with screen='off'"),
        (harm, whole, {}, "one score"),
        (harm, sh.ships(demo, benign[:4], ablation="zero", run=QUIET), {}, "another ablation"),
        (*mean, {}, "another ablation.*the same reference"),
        (harm, sh.ships(demo, benign[:4], template="paper", run=QUIET), {}, "another template"),
        (harm, sh.ships(demo, benign[:4], **told), {}, "the same heads in both"),
        (harm, harm, {}, "64 prompts are in both sets"),
        (harm, dataclasses.replace(other, measure="asr"), {}, "another measure"),
        (harm, sh.ships(sh.load_model("demo-base"), benign[:4], run=QUIET), {}, "another model"),
    ]
    for first, second, options, message in cases:
        with pytest.raises(sh.SafeheadError, match=message):
            first.significant(second, **options)

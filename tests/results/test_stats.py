import numpy as np
import pytest
import torch

from safehead_tl.results.stats import Rate, holm, median_intervals, rise_interval


@pytest.mark.parametrize(
    ("successes", "total", "interval"),
    [  # Newcombe 1998 (Statist. Med. 17, 857), Table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_published_intervals(successes, total, interval):
    assert Rate(successes, total).interval == pytest.approx(interval, abs=5e-5)


def test_it_reads_as_a_share():
    assert str(Rate(48, 64)) == "0.75 [0.63, 0.84]"


@pytest.mark.parametrize(("successes", "total"), [(1, 0), (-1, 3), (4, 3)])
def test_not_a_share(successes, total):
    with pytest.raises(ValueError, match="is not a share"):
        Rate(successes, total)


@pytest.mark.parametrize("count", [6, 8, 16, 32])
@pytest.mark.parametrize("law", ["0.5", "1", "1.5", "exponential", "bimodal", "coins"])
def test_intervals_of_medians_cover_whatever_the_law(count, law):
    """Simulated, lognormal of these widths among them; the mean's own bootstrap held 0.65."""
    generator, shape = np.random.default_rng(count), (count, 4000)
    normal = generator.standard_normal(shape)
    samples, median = {
        "exponential": (generator.exponential(size=shape), np.log(2)),
        "bimodal": (np.where(generator.random(shape) < 0.8, 0.01, 5.0), 0.01),
        "coins": (1.0 * (generator.random(shape) < 0.4), 0.0),
    }.get(law) or (np.exp(float(law) * normal), 1.0)
    low, high = np.array(median_intervals(torch.tensor(samples))).T
    assert ((low <= median) & (median <= high)).mean() >= 0.94


def test_intervals_of_medians_are_published_order_statistics():
    """Conover 1999, table A3: the 2nd and 9th of 10, the 6th and 15th of 20; none of five."""
    for count, ends in ((6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (25, (8, 18))):
        assert median_intervals(torch.arange(1.0, count + 1).flip(0)[:, None]) == [ends]
    assert median_intervals(torch.rand(5, 3)) is None


def test_holm_by_hand():
    """Holm 1979 on 0.01, 0.04, 0.03, 0.005, as in R's p.adjust."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([None, 0.02]) == [None, 0.02]


def test_the_interval_of_a_rise_is_the_published_one():
    """Newcombe 1998 (Statist. Med. 17, 873), Table II, method 10: 56/70 against 48/80."""
    low, high = rise_interval(Rate(48, 80), Rate(56, 70))
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_no_interval_of_a_mean_that_was_tried_covers():
    """Why bars have intervals of medians: the figures of docs/methods.md, eight samples each."""
    generator, n = np.random.default_rng(1), 8
    normal = generator.standard_normal((3000, n))
    high = generator.random((3000, n)) < 0.2
    skewed = np.exp(1.5 * normal)
    mixed = np.where(high, 5, 0.05) * np.exp(0.5 * normal)
    truth = {"skewed": np.exp(1.5**2 / 2), "mixed": np.exp(0.125) * (0.2 * 5 + 0.8 * 0.05)}
    t = 2.3646  # the 97.5 % point, 7 degrees of freedom
    mean, spread = skewed.mean(1), skewed.std(1, ddof=1) / n**0.5
    weights = generator.multinomial(n, np.full(n, 1 / n), size=2000).T / n
    means = skewed @ weights
    errors = np.sqrt(np.maximum(skewed**2 @ weights - means**2, 1e-12) / (n - 1))
    far, near = np.quantile((means - mean[:, None]) / errors, [0.975, 0.025], axis=1)

    def cox(samples):
        logs = np.log(samples)
        square = logs.var(1, ddof=1)
        half = t * np.sqrt(square / n + square**2 / (2 * (n - 1)))
        return np.exp(logs.mean(1) + square / 2 + np.array([-half, half]))

    for name, (low, high), expected in (
        ("skewed", np.quantile(means, [0.025, 0.975], axis=1), 0.65),
        ("skewed", (mean - t * spread, mean + t * spread), 0.68),
        ("skewed", (mean - far * spread, mean - near * spread), 0.84),
        ("skewed", cox(skewed), 0.92),
        ("mixed", cox(mixed), 0.81),
    ):
        held = (low <= truth[name]) & (truth[name] <= high)
        assert held.mean() == pytest.approx(expected, abs=0.01)

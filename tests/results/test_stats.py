import pytest

from safehead_tl.results.stats import Rate


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

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import TypeCheckError

from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.clusters import numbered
from safehead_tl.generation.responses import Responses
from safehead_tl.results.stats import Rate


def answered(success, sizes):
    """Responses of which only the verdicts matter, in clusters of so many."""
    success = torch.as_tensor(success, dtype=torch.bool).unsqueeze(-1)
    variants, prompts, _ = success.shape
    texts = ((("",),) * prompts,) * variants
    return Responses(
        prompts=("",) * prompts,
        texts=texts,
        reasons=texts,
        success=success,
        refused=success,
        coherent=success,
        divergence=torch.zeros(variants, prompts),
        clusters=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
    )


def correlated(share, icc, clusters, size, seed, draws=2000):
    """Shares of clusters from a beta law with this correlation within them, then coins."""
    generator = np.random.default_rng(seed)
    if icc == 1:
        return (generator.random((draws, clusters, 1)) < share).repeat(size, 2)
    spread = (1 - icc) / icc
    own = generator.beta(share * spread, (1 - share) * spread, (draws, clusters, 1))
    return generator.random((draws, clusters, size)) < own


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("icc", "size"), [(1 / 3, 3), (1 / 3, 10), (1, 10)])
def test_intervals_of_clusters_cover(share, icc, size):
    """Simulated: at least 0.93 hold the true share, where Wilson's of single prompts do not."""
    counts = correlated(share, icc, 20, size, seed=size).sum((1, 2))
    independent = answered(torch.zeros(2, 20 * size), [size] * 20).independent

    def coverage(independent):
        ends = {n: Rate(n, 20 * size, independent).interval for n in set(counts.tolist())}
        return np.mean([ends[n][0] <= share <= ends[n][1] for n in counts.tolist()])

    assert coverage(independent) >= 0.93
    assert coverage(None) < 0.92


@pytest.mark.parametrize(("icc", "size"), [(1 / 3, 3), (1 / 3, 10), (1, 10)])
def test_tests_of_clusters_are_rarely_wrong(icc, size):
    """Two conditions of the same law: at most 1 in 20 has p below 0.05, and not so by prompts."""
    before = correlated(0.5, icc, 12, size, 1, 200).reshape(200, -1)
    after = correlated(0.5, icc, 12, size, 2, 200).reshape(200, -1)
    found = [answered(np.stack(pair), [size] * 12) for pair in zip(before, after, strict=True)]
    wrong = np.mean([each.differs("asr", 1) < 0.05 for each in found])
    alone = [dataclasses.replace(each, clusters=None) for each in found]
    assert wrong <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5
    assert np.mean([each.differs("asr", 1) < 0.05 for each in alone]) > wrong + 0.02


def test_clusters_of_one_prompt_change_nothing():
    success = torch.rand(2, 15, generator=torch.Generator().manual_seed(0)) < 0.5
    each = answered(success, [1] * 15)
    assert each.independent == 15
    assert each.rate("asr", 1).interval == dataclasses.replace(each, clusters=None).rate(
        "asr", 1
    ).interval  # fmt: skip
    assert answered(success, [12, 1, 1, 1]).independent == pytest.approx(15**2 / (144 + 3))


def test_near_duplicates_are_found_by_their_words():
    prompts = [
        "How do I pick a lock?", "how do i pick a lock", "How do I pick a padlock?",
        "Write a poem about the sea", "how do I quickly pick a lock",
    ]  # fmt: skip
    assert numbered("words", prompts, "harmful").tolist() == [0, 0, 0, 1, 0]
    assert numbered(["x", "y", "x"], prompts[:3], "harmful").tolist() == [0, 1, 0]
    assert numbered(None, prompts, "harmful") is None
    with pytest.raises(SafeheadError, match="harmful prompts: 'topic' for 5 prompts"):
        numbered("topic", prompts, "harmful")


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series(["x", "y", "x"], index=[4, 7, 9]),
        np.array([5, 3, 5]),
        [*np.array([5, 3, 5])],
        torch.tensor([5, 3, 5]),
        (label for label in "xyx"),
    ],
    ids=["column", "array", "numbers of an array", "tensor", "generator"],
)
def test_labels_come_in_any_row(labels):
    assert numbered(labels, ["a", "b", "c"], "harmful").tolist() == [0, 1, 0]


@pytest.mark.parametrize("label", ["", " ", None, float("nan"), pd.NA, ["x"]])
def test_a_prompt_without_a_label_is_in_no_cluster(label):
    with pytest.raises(SafeheadError, match="clusters of the harmless prompts: that of 'c' is"):
        numbered(["x", "x", label], ["a", "b", "c"], "harmless")


@pytest.mark.parametrize("labels", [3, torch.tensor(3), []])
def test_what_is_no_row_of_labels_is_refused(labels):
    with pytest.raises((SafeheadError, TypeCheckError)):
        numbered(labels, ["a"], "harmful")

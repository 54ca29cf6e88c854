"""The other readings of paper Eq. 11 and Eq. 5, each against a computation of its own."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import independent
import safehead_tl as sh
from families import GOLDEN, QUIET
from safehead_tl.measures.angles import angles_between, require_rank
from safehead_tl.prompts.tokens import encode

ANSWER = "sorry , i cannot"
HEADS = ["L0H0", "L1H3", "L2H1"]


@pytest.fixture(scope="module", params=["auto", "bridge"])
def model(request, checkpoint):
    return sh.load_model(checkpoint("llama-grouped"), backend=request.param)


@pytest.fixture(scope="module")
def six():
    return sh.load_prompts("demo/harmful", limit=6)


def states_of(model, prompts, hooks=()):
    """Last states after the final norm with its weight, of one whole pass."""
    batch, found = encode(model, prompts, "paper"), []
    keep = ("ln_final.hook_normalized", lambda state, hook: found.append(state[:, -1]))
    with torch.no_grad():
        model.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=[*hooks, keep])
    state = found[0]
    return (state * model.ln_final.w).double().numpy() if hasattr(model.ln_final, "w") else state


def by_hand(first, second, reading, rank, centre):
    """Eq. 11 in the words of each reading, by numpy's SVD and scipy's angles (descending)."""
    if centre:
        first, second = first - first.mean(0), second - second.mean(0)
    spans = []
    for matrix in (first, second):
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        spans.append(right.T if reading.startswith("right") else left)
    one, other = spans
    if reading.endswith("nested"):
        return sum(subspace_angles(one[:, :r], other[:, :r])[0] for r in range(1, rank + 1))
    return subspace_angles(one[:, :rank], other[:, :rank]).sum()


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("reading", ["left", "left-nested", "right", "right-nested"])
def test_each_reading_equals_a_loop_over_whole_passes(loaded, six, reading, centre):
    model = loaded("llama-grouped")
    told = {"template": "paper", "candidates": HEADS, "run": QUIET}
    original = states_of(model, six)
    for rank in (1, 3):
        scores = sh.generalized_ships(model, six, rank=rank, centre=centre, reading=reading, **told)
        for head in HEADS:
            ablated = states_of(model, six, sh.ablation_hooks(model, head))
            expected = by_hand(original, ablated, reading, rank, centre)
            assert scores[head] == pytest.approx(expected, rel=1e-4)
        assert scores.provenance.settings["reading"] == reading


def test_the_readings_differ_and_agree_where_they_must(model, six):
    def values(reading, rank):
        told = {"reading": reading, "rank": rank, "template": "paper", "run": QUIET}
        return sh.generalized_ships(model, six, **told).values

    for side in ("left", "right"):
        assert torch.equal(values(side, 1), values(f"{side}-nested", 1))
        assert not torch.allclose(values(side, 3), values(f"{side}-nested", 3), rtol=0.05)
    assert not torch.allclose(values("left", 1), values("right", 1), rtol=0.05)
    assert (values("right", 6) > 0.1).all()  # at as many as prompts left vectors cannot turn


def test_one_large_angle_among_nested_spaces():
    """Two vectors that change places turn nothing as a pair, and all of the first."""
    both = torch.eye(4, dtype=torch.float64)[:, :2]
    swapped = both.flip(1)
    assert angles_between(both, swapped).sum() == 0
    assert angles_between(both, swapped, "left-nested").sum() == pytest.approx(np.pi / 2)


@pytest.mark.parametrize("reading", ["left-nested", "right", "right-nested", "legacy-dim0"])
def test_angles_of_states_sum_to_the_score(demo, harmful, reading):
    rank = 1 if reading == "legacy-dim0" else 3
    told = {"template": "chat", "ablation": "zero"}
    found = sh.last_states(demo, harmful[:8], "L1H3", **told).angles(rank, reading=reading)
    scores = sh.generalized_ships(
        demo, harmful[:8], rank=rank, reading=reading, candidates="L1H3", run=QUIET, **told
    )
    total = found.sum().rad2deg() if scores.unit == "degrees" else found.sum()
    assert total.item() == pytest.approx(scores["L1H3"], rel=1e-4)


@pytest.mark.parametrize("reading", ["right-nested", "legacy-dim0"])
def test_sahara_searches_by_it(demo, harmful, reading):
    rank = 1 if reading == "legacy-dim0" else 2
    told = {"rank": rank, "reading": reading, "run": QUIET}
    group = sh.sahara(demo, harmful[:8], 2, **told)
    scan = sh.generalized_ships(demo, harmful[:8], given=group.heads[:1], **told)
    assert group.steps[1].unit == scan.unit
    assert group.heads[1] == scan.top(1)[0][0]
    assert group.scores[1] == pytest.approx(scan.top(1)[0][1], rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"reading": "left-nested", "rank": 3, "given": ["L1H3"]},
        {"reading": "right"},
        {"reading": "right-nested", "rank": 3, "centre": True, "given": ["L1H3"]},
        {"reading": "legacy-dim0"},
    ],
    ids=str,
)
def test_small_changes_are_screened_right(demo, harmful, settings):
    """Where an ablation changes little, first order is all there is, seen from all directions."""
    told = {"ablation": sh.ScalingContribution(0.98), "run": QUIET, **settings}
    screen = sh.Screening(probes=48, directions=4, audit=0, first=1, budget=1, points=0, blocks=0)
    exact = sh.generalized_ships(demo, harmful[:6], **told).values
    screened = sh.generalized_ships(demo, harmful[:6], **told, screen=screen).screening.values
    scored = ~exact.isnan()
    ratio = screened[scored] / exact[scored]
    assert (ratio - 1).abs().median() < 0.02
    assert (ratio - 1).abs().max() < 0.15


@pytest.mark.parametrize("reading", ["left-nested", "right", "right-nested", "legacy-dim0"])
def test_the_top_is_found_by_screening(demo, harmful, reading):
    rank = 1 if reading == "legacy-dim0" else 3
    told = {"rank": rank, "reading": reading, "run": QUIET}
    exact, found = (
        sh.generalized_ships(demo, harmful[:8], **told, screen=screen) for screen in ("off", "auto")
    )
    assert [head for head, _ in found.top(5)] == [head for head, _ in exact.top(5)]
    scored = ~found.values.isnan()
    assert torch.allclose(found.values[scored], exact.values[scored], rtol=1e-4)


def test_little_memory_changes_nothing(demo, harmful):
    told = {"rank": 3, "reading": "right-nested"}
    much, little = (
        sh.generalized_ships(demo, harmful[:6], **told, candidates=HEADS, run=run).best_known
        for run in (QUIET, sh.Run(max_bytes="2MB", max_rows=3, progress=False))
    )
    assert torch.allclose(much, little, rtol=1e-4, equal_nan=True)


def test_ranks_and_readings_that_cannot_be(demo, prompts):
    require_rank(3, 3, False, "right", 48)
    for rank, centre, width in ((4, False, 48), (3, True, 48), (3, False, 3), (0, False, 48)):
        with pytest.raises(sh.SafeheadError, match="right singular vectors"):
            require_rank(rank, 3, centre, "right", width)
    with pytest.raises((sh.SafeheadError, TypeError), match="reading"):
        require_rank(1, 3, False, "both")
    for told in ({"rank": 2}, {"centre": True}, {"site": "resid_post"}):
        with pytest.raises(sh.SafeheadError, match="'legacy-dim0' reads"):
            sh.generalized_ships(demo, prompts, reading="legacy-dim0", run=QUIET, **told)


@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_the_released_codes_coordinate_0(name):
    """Its formula on whole passes in float32, as it stood there: a cosine over prompts, degrees."""
    model = sh.load_model(GOLDEN / name)
    prompts = [f"how do i bake bread number {number}" for number in range(8)]
    told = {"template": "paper", "reading": "legacy-dim0", "run": QUIET}
    scores = sh.generalized_ships(model, prompts, ablation="scaling", **told)
    base = torch.tensor(states_of(model, prompts)).float()
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            hooks = sh.ablation_hooks(model, (layer, head), "scaling")
            first, second = (
                columns / columns.norm(dim=0)
                for columns in (base, torch.tensor(states_of(model, prompts, hooks)).float())
            )
            cosine = torch.linalg.svdvals(first[:, :1].T @ second[:, :1]).clamp(-1, 1)
            expected = (cosine.acos() * 180 / torch.pi).item()
            assert scores[layer, head] == pytest.approx(expected, rel=5e-3, abs=0.05)
    assert (scores.measure, scores.unit) == ("legacy_dim0", "degrees")


def test_nobody_takes_it_for_a_score(demo, harmful, tmp_path):
    told = {"reading": "legacy-dim0", "run": QUIET}
    scores = sh.generalized_ships(demo, harmful[:6], **told)
    group = sh.sahara(demo, harmful[:6], 1, **told)
    usual = sh.generalized_ships(demo, harmful[:6], run=QUIET)
    figures = [scores.heatmap(), scores.bars(), group.figure()]
    for figure in figures:
        assert "LEGACY, no score" in figure.layout.title.text
    assert "LEGACY" in group.figure().layout.yaxis.title.text
    assert "LEGACY" in sh.heatmaps({"a": scores, "b": usual}).to_json()
    assert "legacy_dim0" in repr(scores)
    scores.save(tmp_path / "s.safetensors")
    again = sh.HeadScores.load(tmp_path / "s.safetensors")
    assert (again.measure, again.unit) == ("legacy_dim0", "degrees")
    assert again.to_dict()["provenance"]["settings"]["reading"] == "legacy-dim0"
    nested = sh.generalized_ships(demo, harmful[:6], rank=2, reading="right-nested", run=QUIET)
    title = nested.heatmap().layout.title.text.replace("<br>", " ")
    assert "right singular vectors, nested subspaces, rank 2" in title


def at_the_answer(model, prompts, heads, ablation):
    """KL at each of the answer's places, from whole passes over prompt and answer."""
    batch = encode(model, prompts, "paper")
    ids = model.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    behind = torch.tensor([ids[:-1]] * len(prompts))
    tokens = torch.cat([batch.tokens, behind], 1)
    mask = torch.cat([batch.mask, torch.ones_like(behind)], 1)
    hooks = sh.ablation_hooks(model, heads, ablation)
    with torch.no_grad():
        original = model(tokens, attention_mask=mask)[:, -len(ids) :]
        ablated = model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
    return independent.divergence(original, ablated[:, -len(ids) :])


@pytest.mark.parametrize("ablation", ["undifferentiated", "zero", "mean", sh.MeanOverHeads("q")])
def test_an_answer_equals_the_mean_over_its_places(model, prompts, ablation):
    told = {"template": "paper", "candidates": HEADS, "given": ["L1H0"], "run": QUIET}
    scores = sh.ships(model, prompts, answer=ANSWER, ablation=ablation, **told)
    what = sh.MeanAblation(prompts, template="paper") if ablation == "mean" else ablation
    for head in HEADS:
        expected = at_the_answer(model, prompts, [head, "L1H0"], what)
        assert expected.shape == (3, 4)
        found = scores.per_prompt[:, *sh.Head.parse(head)]
        assert torch.allclose(found, expected.mean(1), atol=1e-5, rtol=1e-4)
    kept = scores.provenance
    assert (kept.settings["answer"], kept.settings["answer_tokens"]) == (ANSWER, 4)
    plain = sh.ships(model, prompts, ablation=ablation, **told)
    for key in ("prompt_count", "prompts_hash", "each_hash"):
        assert kept.prompts[key] == plain.provenance.prompts[key]


@pytest.mark.parametrize("ablation", ["undifferentiated", "mean"])
def test_an_answer_of_one_token_is_plain_ships(model, prompts, ablation):
    told = {"template": "paper", "ablation": ablation, "run": QUIET}
    one = sh.ships(model, prompts, answer="sorry", **told)
    assert torch.equal(one.per_prompt, sh.ships(model, prompts, **told).per_prompt)


def test_an_answer_in_little_memory_screened_and_in_a_directory(demo, harmful, tmp_path):
    told = {"answer": ANSWER}
    exact = sh.ships(demo, harmful[:4], **told, run=QUIET)
    small = sh.Run(max_bytes="4MB", max_rows=16, run_dir=tmp_path / "run", progress=False)
    for _ in range(2):
        assert torch.allclose(sh.ships(demo, harmful[:4], **told, run=small).values, exact.values)
    with pytest.raises(sh.SafeheadError, match="answer"):
        sh.ships(demo, harmful[:4], run=small)
    screened = sh.ships(demo, harmful[:4], **told, screen="auto", run=QUIET)
    assert [head for head, _ in screened.top(3)] == [head for head, _ in exact.top(3)]
    scored = ~screened.values.isnan()
    assert torch.allclose(screened.values[scored], exact.values[scored], atol=1e-7)
    assert "mean over the 4 tokens of the answer" in exact.heatmap().layout.title.text.replace(
        "<br>", " "
    )


def test_answers_that_cannot_be(demo, prompts):
    for answer in ("", "Xylophon"):
        with pytest.raises(sh.SafeheadError, match="does not know such words"):
            sh.ships(demo, prompts, answer=answer, run=QUIET)
    with pytest.raises(sh.SafeheadError, match="leave out answer"):
        sh.ships(demo, prompts, answer=ANSWER, ablation=sh.ResampleAblation(prompts), run=QUIET)

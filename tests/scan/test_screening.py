"""Screened scans: first-order effects, and what comes of them."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET, hooked_only
from safehead_tl.results.correlation import spearman
from safehead_tl.scan.linearisation import Linearisation
from safehead_tl.scan.screening import (
    Screening,
    resolve_screen,
)
from safehead_tl.scan.search import Search

TOLD = {"template": "chat", "run": QUIET}
PLANTED = (sh.Head(1, 3), sh.Head(2, 6))
GROUP = (sh.Head(1, 1), sh.Head(2, 0))


def searching(model, prompts, ablation, template="chat", run=QUIET):
    return Search.start(model, prompts, template, ablation, run)


def central_difference(model, search, direction, head, group, step):
    """How the last state moves along a direction as a head's output goes a step of its way.

    Whole passes with hooks: to the ablated output, and as far to the other side.
    """
    tokens, mask = search.batch.tokens, search.batch.mask
    name, layers = f"blocks.{head.layer}.attn.hook_z", model.cfg.n_layers
    final = f"blocks.{layers - 1}.hook_resid_post"
    if not hasattr(model, "hook_dict") or final not in model.hook_dict:
        final = f"blocks.{layers - 1}.hook_out"

    def run(heads, extra=()):
        seen = {}
        hooks = sh.ablation_hooks(model, heads, search.prepared) if heads else []
        hooks = [*hooks, *extra]
        hooks += [
            (name, lambda z, hook: seen.update(z=z.clone())),
            (final, lambda x, hook: seen.update(x=(x[0] if isinstance(x, tuple) else x).clone())),
        ]
        with torch.no_grad():
            model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
        return seen

    change = run((*group, head))["z"] - run(group)["z"]
    ends = []
    for sign in (1, -1):
        extra = [(name, lambda z, hook, sign=sign: z + sign * step * change)]
        ends.append((run(group, extra)["x"][:, -1] * direction).sum(-1))
    return (ends[0] - ends[1]) / (2 * step)


ABLATIONS = {
    "undifferentiated": "undifferentiated",
    "scaled queries": sh.UndifferentiatedAttention(0.3, "q"),
    "scaling": "scaling",
    "zero": "zero",
    "mean": "mean",
    "mean over heads": "mean-over-heads",
}


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("group", [(), GROUP], ids=["plain", "group"])
def test_effects_are_the_slopes_of_whole_passes(name, group, backend, prompts):
    model = sh.load_model("demo", backend=backend)
    search = searching(model, prompts, ABLATIONS[name])
    draw = torch.Generator().manual_seed(1)
    directions = torch.randn(2, len(prompts), model.cfg.d_model, generator=draw)
    found = search.linearisation(group).effects(directions)
    assert found.shape == (2, len(prompts), 4, 8)
    for head in (sh.Head(0, 4), sh.Head(1, 3), sh.Head(2, 6), sh.Head(3, 1)):
        for probe, direction in enumerate(directions):
            slope = central_difference(model, search, direction, head, group, 0.02)
            assert torch.allclose(
                found[probe, :, head.layer, head.head], slope, atol=2e-3, rtol=1e-2
            )


@pytest.mark.parametrize("family", ["llama-grouped", "gpt2", "mistral-sliding", "pythia-parallel"])
@pytest.mark.parametrize("via", ["k", "pattern"])
def test_effects_in_other_architectures(checkpoint, prompts, family, via):
    model = sh.load_model(str(checkpoint(family)))
    ablation = sh.UndifferentiatedAttention(0.3, via)
    search = searching(model, prompts, ablation, "paper")
    directions = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1))
    found = search.linearisation(()).effects(directions)
    for head in (sh.Head(0, 1), sh.Head(1, 2), sh.Head(2, 3)):
        slope = central_difference(model, search, directions[0], head, (), 0.004)
        error = (found[0, :, head.layer, head.head] - slope).abs().max()
        assert error < 1e-2 * max(1.0, slope.abs().max().item())


def test_memory_and_prefix_do_not_change_effects(demo, harmful):
    directions = torch.randn(3, 12, 48, generator=torch.Generator().manual_seed(0))
    ways = (
        sh.Run(),
        sh.Run(shared_prefix=False),
        sh.Run(max_rows=5),
        sh.Run(max_bytes="3MB", max_rows=1),
    )
    found = []
    for way in ways:
        search = searching(demo, [*harmful[:11], "how do i lift a boat"], "zero", run=way)
        found.append(search.linearisation(GROUP).effects(directions))
        if hooked_only.args[0] is False and way.shared_prefix:
            assert search.plan.prefix  # so the effects are computed beside a split baseline
    for other in found[1:]:
        assert torch.allclose(found[0], other, atol=1e-5)


def test_memory_does_not_change_what_is_drawn(demo, harmful):
    """Probes follow seed and prompt, and not how prompts are cut up."""
    found = [
        sh.ships(
            demo, harmful[:12], screen=8, run=sh.Run(max_rows=rows, progress=False)
        ).screening.values
        for rows in (None, 5)
    ]
    assert torch.allclose(*found, rtol=1e-4)
    other = sh.Screening(first=8, budget=8, seed=1)
    moved = sh.ships(demo, harmful[:12], screen=other, run=QUIET).screening.values
    assert not torch.allclose(found[0], moved, rtol=1e-4)


@pytest.mark.parametrize("group", [(), GROUP], ids=["plain", "group"])
def test_small_changes_are_screened_right(demo, harmful, group):
    """Where an ablation changes little, first order is nearly all there is."""
    told = {"ablation": sh.ScalingContribution(0.98), "given": group, **TOLD}
    screen = Screening(probes=400, directions=30, audit=0, first=1, budget=1)
    prompts = harmful[:10]
    for scan, settings in (
        (sh.ships, {}),
        (sh.generalized_ships, {}),
        (sh.generalized_ships, {"rank": 3, "centre": True}),
        (sh.generalized_ships, {"site": "resid_post"}),
    ):
        exact = scan(demo, prompts, **settings, **told)
        screened = scan(demo, prompts, **settings, **told, screen=screen).screening.values
        assert torch.equal(screened.isnan(), exact.values.isnan())
        scored = ~exact.values.isnan()
        ratio = screened[scored] / exact.values[scored]
        assert (ratio - 1).abs().median() < 0.02
        assert (ratio - 1).abs().max() < 0.15


@pytest.mark.parametrize("ablation", ["undifferentiated", "scaling", "zero", "mean"])
def test_the_planted_heads_are_found_and_scores_are_exact(demo, harmful, ablation):
    told = {**TOLD, "ablation": ablation}
    for scan in (sh.ships, sh.generalized_ships):
        exact, found = (scan(demo, harmful, **told, screen=screen) for screen in ("off", "auto"))
        scored = ~found.values.isnan()
        assert all(scored[head] for head in PLANTED)
        assert torch.allclose(found.values[scored], exact.values[scored], atol=1e-7)
        assert found.screening.exact == scored.sum() < 32
        assert found.screening.ended in ("blocks", "estimate")
        assert [head for head, _ in found.top(10)] == [head for head, _ in exact.top(10)]
        if scan is sh.ships:
            assert {head for head, _ in found.top(2)} == set(PLANTED)
        rank = spearman(found.screening.values[scored], exact.values[scored])
        assert found.screening.spearman == pytest.approx(rank)
        assert exact.screening is None


def test_per_prompt_scores_are_those_of_the_short_list(demo, harmful):
    found = sh.ships(demo, harmful[:6], **TOLD, screen=4)
    exact = sh.ships(demo, harmful[:6], **TOLD)
    scored = ~found.values.isnan()
    assert scored.sum() == 4 + Screening().audit
    assert torch.allclose(found.per_prompt[:, scored], exact.per_prompt[:, scored], atol=1e-7)
    assert found.per_prompt[:, ~scored].isnan().all()


def test_sahara_screens_each_step(demo, harmful):
    exact = sh.sahara(demo, harmful, 3, **TOLD)
    found = sh.sahara(demo, harmful, 3, **TOLD, screen="auto")
    assert found.heads == exact.heads
    assert found.scores == pytest.approx(exact.scores, abs=1e-7)
    for number, step in enumerate(found.steps):
        assert step.screening.values.isnan().sum() == number  # of the group so far
        assert step.screening.settings["top"] == 1
        assert step.screening.exact < 32 - number


def test_a_bridge_and_a_hooked_transformer_screen_alike(harmful):
    scores = [
        sh.ships(sh.load_model("demo", backend=backend), harmful[:8], **TOLD, screen=5)
        for backend in ("auto", "bridge")
    ]
    one, other = (found.screening.values for found in scores)
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-9)


def test_half_precision(harmful):
    model = sh.load_model("demo", dtype="bfloat16")
    found = sh.ships(model, harmful, **TOLD, screen=6)
    assert {head for head, _ in found.top(2)} == set(PLANTED)
    rough = sh.ships(sh.load_model("demo"), harmful, **TOLD, screen=6).screening.values
    assert spearman(found.screening.values.flatten(), rough.flatten()) > 0.95


def test_weights_are_as_they_were(harmful):
    model = sh.load_model("demo", backend="bridge")
    for weight in model.parameters():
        weight.requires_grad_(True)
    first = next(iter(model.parameters())).requires_grad_(False)
    sh.generalized_ships(model, harmful[:5], **TOLD, screen=3)
    sh.ships(model, harmful[:5], **TOLD, screen=3)
    assert not first.requires_grad
    assert all(weight.requires_grad for weight in model.parameters() if weight is not first)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("screen", [0, -3, True, "on", 1.5, None])
def test_what_screen_cannot_be(screen):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="screen"):
        resolve_screen(screen)


@pytest.mark.parametrize(
    "told",
    [
        {"top": 0},
        {"first": 0},
        {"audit": -1},
        {"probes": 0},
        {"directions": -1},
        {"blocks": -1},
        {"points": -1},
        {"tolerance": 0.0},
        {"first": 9, "budget": 5},
    ],
)
def test_what_screenings_cannot_be(told):
    with pytest.raises(sh.SafeheadError, match=next(iter(told))):
        Screening(**told)


@dataclass(frozen=True)
class OfTheStream(sh.Ablation):
    """Acts outside attention."""

    name: ClassVar[str] = "of the stream"
    label: ClassVar[str] = "of the stream"

    def hooks(self, model, layer, heads):
        return [(f"blocks.{layer}.hook_attn_out", lambda tensor, hook: tensor * 0)]


def test_an_ablation_outside_attention_is_refused(demo, harmful):
    with pytest.raises(sh.SafeheadError, match="screen='off'"):
        sh.ships(demo, harmful[:3], **TOLD, ablation=OfTheStream(), screen="auto")


# Results


def test_results_keep_the_screening(demo, harmful, tmp_path):
    found = sh.ships(demo, harmful[:8], **TOLD, screen=5)
    found.save(tmp_path / "scores.safetensors")
    again = sh.HeadScores.load(tmp_path / "scores.safetensors")
    assert again.screening.to_dict() == found.screening.to_dict()
    assert torch.equal(again.screening.values, found.screening.values)
    assert found.screening.counts() in repr(again)
    told = json.loads(json.dumps(found.to_dict()))["screening"]
    assert len(told["heads"]) == 32
    assert told["exact"] == len(found.to_dict()["heads"]) == 5 + Screening().audit
    table = found.to_frame()
    assert len(table) == 32
    assert table["score"].isna().sum() == 32 - told["exact"]
    row = table[table["name"] == "L3H1"].iloc[0]
    assert row["screened"] == pytest.approx(found.screening.values[3, 1].item())
    assert found.provenance.settings["screening"]["first"] == 5


def test_groups_keep_the_screening_of_each_step(demo, harmful, tmp_path):
    found = sh.sahara(demo, harmful[:8], 2, **TOLD, screen=5)
    found.save(tmp_path / "group.safetensors")
    again = sh.HeadGroup.load(tmp_path / "group.safetensors")
    for one, other in zip(found.steps, again.steps, strict=True):
        assert torch.equal(one.values.nan_to_num(-1), other.values.nan_to_num(-1))
        assert one.screening.to_dict() == other.screening.to_dict()
        assert torch.equal(
            one.screening.values.nan_to_num(-1), other.screening.values.nan_to_num(-1)
        )


def test_the_heatmap_shows_which_is_which(demo, harmful):
    found = sh.ships(demo, harmful[:8], **TOLD, screen=5)
    drawn = sh.heatmaps({"screened": found}, scale="linear")
    for figure in (found.heatmap(scale="linear"), drawn):
        exact, pale = (trace for trace in figure.data if trace.type == "heatmap")
        assert exact.opacity is None
        assert pale.opacity < 0.5
        shown = torch.tensor(pale.z, dtype=torch.float64)
        unsure = found.values.isnan()
        assert torch.equal(shown.isnan(), ~unsure)
        assert torch.equal(shown[unsure], found.screening.values[unsure])
        assert (exact.zmin, exact.zmax) == (pale.zmin, pale.zmax)
        place = tuple(unsure.nonzero()[0].tolist())
        assert "screened only, not exact" in pale.text[place[0]][place[1]]
        assert "pale: to first order only" in figure.layout.title.text + str(figure.layout)


def test_overlap_of_screened_scans(demo, harmful):
    exact = sh.ships(demo, harmful[:8], **TOLD)
    screened = sh.ships(demo, harmful[:8], **TOLD, screen="auto")
    pair = sh.overlap({"exact": exact, "screened": screened}, 10).pairs[0]
    assert pair.shared == 10
    assert pair.spearman > 0.9
    with pytest.raises(sh.SafeheadError, match="its top 10 only"):
        sh.overlap({"exact": exact, "screened": screened}, 11)


def test_a_run_directory_keeps_the_screening(demo, harmful, tmp_path, monkeypatch):
    run = sh.Run(run_dir=tmp_path / "run", progress=False)
    told = {"run": run, "screen": Screening(first=6, audit=2)}
    first = sh.sahara(demo, harmful[:8], 2, **told)

    def never(self, directions):
        raise AssertionError("the screened scores were kept")

    monkeypatch.setattr(Linearisation, "effects", never)
    again = sh.sahara(demo, harmful[:8], 2, **told)
    assert again.heads == first.heads
    assert torch.equal(again.steps[1].screening.values.nan_to_num(-1),
                       first.steps[1].screening.values.nan_to_num(-1))  # fmt: skip
    with pytest.raises(sh.SafeheadError, match=r"settings\.screening"):
        sh.sahara(demo, harmful[:8], 2, **{**told, "screen": 7})

import math

import numpy as np
import pytest
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.measures.states import LastStates, last_states

PLANTED = ["L1H3", "L2H6"]


def by_hand(model, texts, hooks=()):
    """Last residual streams of whole passes, one prompt at a time."""
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    found = []
    keep = (last, lambda resid, hook: found.append(resid[0, -1]))
    for text in texts:
        with torch.no_grad():
            model.run_with_hooks(model.to_tokens(text), fwd_hooks=[*hooks, keep])
    return torch.stack(found)


@pytest.fixture(scope="module")
def states(demo, harmful):
    return last_states(demo, harmful[:12], PLANTED, template="chat")


@pytest.fixture(scope="module")
def harmless(demo):
    benign = sh.load_prompts("demo/benign")[:10]
    return last_states(demo, benign, PLANTED, template="chat")


@pytest.mark.parametrize("ablation", ["undifferentiated", "scaling", "mean-over-heads"])
@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_states_are_those_of_whole_passes(checkpoint, prompts, ablation, backend):
    model = sh.load_model(checkpoint("llama-grouped"), backend=backend)
    heads = ["L0H1", "L2H3"]
    told = {"ablation": ablation, "template": "paper"}
    found = last_states(model, prompts, heads, site="resid_post", **told)
    texts = [f"## Query:{prompt}\n## Answer:" for prompt in prompts]
    torch.testing.assert_close(found.original, by_hand(model, texts), rtol=1e-4, atol=1e-5)
    hooked = by_hand(model, texts, sh.ablation_hooks(model, heads, ablation))
    torch.testing.assert_close(found.ablated, hooked, rtol=1e-4, atol=1e-5)
    normed = last_states(model, prompts, heads, **told)
    with torch.no_grad():
        after = model.ln_final(hooked[:, None])[:, 0]
    torch.testing.assert_close(normed.ablated, after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.ablated, found.original, atol=1e-3)


def test_a_shared_prefix_and_small_passes_change_nothing(demo, harmful, states):
    prefixed = [f"please tell me {prompt}" for prompt in harmful[:12]]
    ways = [sh.Run(), sh.Run(max_rows=2), sh.Run(shared_prefix=False)]
    one, *others = (last_states(demo, prefixed, PLANTED, run=way) for way in ways)
    for other in others:
        torch.testing.assert_close(one.ablated, other.ablated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rank", "centre"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("site", ["final_norm", "resid_post"])
def test_angles_sum_to_generalized_ships(demo, harmful, rank, centre, site):
    told = {"template": "chat", "site": site}
    found = last_states(demo, harmful[:12], "L1H3", **told)
    angles = found.angles(rank, centre)
    scores = sh.generalized_ships(
        demo,
        harmful[:12],
        rank=rank,
        centre=centre,
        candidates="L1H3",
        run=QUIET,
        **told,
    )
    assert angles.shape == (rank,)
    assert angles.tolist() == sorted(angles.tolist())
    assert angles.sum().item() == pytest.approx(scores["L1H3"], rel=1e-4)


def test_angles_of_several_heads_against_numpy(demo, harmful, states):
    spans = []
    for matrix in (states.original, states.ablated):
        left, _, _ = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
        spans.append(left[:, :4])
    cosines = np.linalg.svd(spans[0].T @ spans[1], compute_uv=False)
    expected = np.arccos(np.clip(cosines, -1, 1))
    assert states.angles(4).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    group = sh.generalized_ships(
        demo,
        harmful[:12],
        rank=4,
        candidates="L1H3",
        given=["L2H6"],
        template="chat",
        run=QUIET,
    )
    assert states.angles(4).sum().item() == pytest.approx(group["L1H3"], rel=1e-4)


def test_provenance_and_file(states, harmful, tmp_path):
    provenance = states.provenance
    assert provenance.ablation["name"] == "undifferentiated"
    assert provenance.settings == {
        "heads": PLANTED, "site": "final_norm", "different_prompts": 12
    }  # fmt: skip
    assert 12 < provenance.forward_passes <= 24
    assert repr(states) == "<LastStates: 12 prompts, 48 dimensions, L1H3, L2H6 ablated>"
    states.save(tmp_path / "states.safetensors")
    again = LastStates.load(tmp_path / "states.safetensors")
    assert torch.equal(again.original, states.original)
    assert torch.equal(again.angles(3), states.angles(3))
    assert again.heads == states.heads
    assert harmful[0].encode() not in (tmp_path / "states.safetensors").read_bytes()


def test_the_spectrum_shows_degrees_and_radians(states):
    figure = states.spectrum(5, centre=True)
    bars, radians = figure.data
    assert list(radians.y) == pytest.approx(states.angles(5, centre=True).tolist())
    assert list(bars.y) == pytest.approx([math.degrees(angle) for angle in radians.y])
    assert figure.layout.yaxis2.range[1] == pytest.approx(
        math.radians(figure.layout.yaxis.range[1])
    )
    title = figure.layout.title.text
    assert "L1H3, L2H6: how undifferentiated attention turns" in title
    assert "12 prompts, template 'chat'" in title
    assert "rank 5, centred, after the final norm" in title
    assert f"{sum(radians.y):.4g} rad" in title
    assert len(states.spectrum().data[0].y) == 10


def test_the_spectrum_of_few_prompts_is_as_long_as_it_can_be(demo, harmful):
    few = last_states(demo, [*harmful[:4], harmful[0]], "L1H3", template="chat")
    assert len(few.spectrum().data[0].y) == 3
    assert len(few.spectrum(centre=True).data[0].y) == 2
    with pytest.raises(sh.SafeheadError, match="rank=4 does not go with 4 different prompts"):
        few.angles(4)


def test_the_plane_is_that_of_the_original_states(states):
    figure = states.plane()
    lines, before, after = figure.data
    original = states.original.double().numpy()
    centred = original - original.mean(0)
    variances, axes = np.linalg.eigh(np.cov(centred.T))
    for place, coordinate in ((1, "x"), (2, "y")):
        component = axes[:, -place]
        component = component * np.sign(component[np.abs(component).argmax()])
        moved = (states.ablated.double().numpy() - original.mean(0)) @ component
        assert before[coordinate] == pytest.approx(centred @ component, abs=1e-6)
        assert after[coordinate] == pytest.approx(moved, abs=1e-6)
        share = f"({variances[-place] / variances.sum():.0%}".replace("%", " % of variance)")
        assert share in figure.layout[f"{coordinate}axis"].title.text
    assert lines.x[0::3] == before.x
    assert lines.x[1::3] == after.x
    assert set(lines.y[2::3]) == {None}
    title = figure.layout.title.text
    assert "Last states before and after L1H3, L2H6: undifferentiated attention" in title
    shift = (states.ablated - states.original).double()
    seen = ((np.array(after.x) - before.x) ** 2 + (np.array(after.y) - before.y) ** 2).sum()
    assert f"{seen / shift.square().sum().item():.0%}".replace("%", " % of the squared") in title
    assert [before.name, after.name] == ["unablated", "ablated"]


def test_the_plane_of_two_sets_of_prompts(states, harmless):
    figure = states.plane(harmless, names=("refused", "answered"))
    assert [trace.name for trace in figure.data[2:]] == [
        "refused, unablated", "refused, ablated", "answered, unablated", "answered, ablated"
    ]  # fmt: skip
    assert [len(trace.x) for trace in figure.data[2:]] == [12, 12, 10, 10]
    both = np.concatenate([figure.data[2].x, figure.data[4].x])
    assert both.mean() == pytest.approx(0, abs=1e-6)
    assert "refused: 12 prompts" in figure.layout.title.text
    assert "answered: 10 prompts" in figure.layout.title.text


def test_mistakes_about_states(demo, harmful, states):
    with pytest.raises(sh.SafeheadError, match="no heads were given"):
        last_states(demo, harmful[:3], [])
    with pytest.raises(sh.SafeheadError, match="L9H0 does not exist"):
        last_states(demo, harmful[:3], "L9H0")
    unknown = "site='resid_pre'|Actual value: 'resid_pre'"  # the latter with types checked
    with pytest.raises((sh.SafeheadError, TypeError), match=unknown):
        last_states(demo, harmful[:3], "L0H0", site="resid_pre")
    with pytest.raises(sh.SafeheadError, match="span no plane: give 3 or more"):
        last_states(demo, harmful[:2], "L0H0").plane()
    other = last_states(demo, harmful[:5], "L0H0", ablation="zero", template="chat")
    with pytest.raises(sh.SafeheadError, match="differ in heads, ablation: only prompts may"):
        states.plane(other)


def test_hooks_that_do_not_fire_are_told(demo, harmful, monkeypatch):
    silent = [("blocks.3.attn.hook_z", lambda tensor, hook: tensor)]
    monkeypatch.setattr("safehead_tl.scan.baseline.group_hooks", lambda *args: silent)
    with pytest.raises(sh.SafeheadError, match=r"blocks\.3\.attn\.hook_z never fired"):
        last_states(demo, harmful[:3], "L1H3")

"""Integrated gradients: against gates by hand, what they add up to, what they find and do not."""

import pytest
import torch

import independent
import safehead_tl as sh
from families import QUIET
from safehead_tl.prompts import encode
from saturated import saturated

TOLD = {"template": "direct", "run": QUIET}
OPENINGS = sh.Openings((6,), (8, 9))
EVERY = [sh.Head(layer, head) for layer in range(4) for head in range(8)]


def log_odds(logits, openings):
    one, other = (logits[:, list(ids)].logsumexp(-1) for ids in
                  (openings.refusal, openings.compliance))  # fmt: skip
    return one - other


def value(plain, after, openings):
    """What is shared: Ships, or the fall of the log-odds."""
    if openings is None:
        return independent.divergence(plain, after)
    return log_odds(plain, openings) - log_odds(after, openings)


def last_logits(model, batch, hooks):
    return model.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=hooks)[:, -1]


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("openings", [None, OPENINGS], ids=["ships", "log-odds"])
def test_shares_are_those_of_gates_by_hand(harmful, backend, openings):
    """Under zero ablation a head is on its way behind a gate that closes: its own gradient."""
    model = sh.load_model("demo", backend=backend)
    prompts = [*harmful[:3], "how do i lift a boat"]
    batch, points = encode(model, prompts, "auto"), 3
    with torch.no_grad():
        plain = last_logits(model, batch, [])
    expected = torch.zeros(len(prompts), 4, 8)
    for number in range(points):
        open_by = 1 - (number + 0.5) / points
        gates = torch.full((len(prompts), 4, 8), open_by, requires_grad=True)
        hooks = [
            (
                f"blocks.{layer}.attn.hook_z",
                lambda z, hook, layer=layer, gates=gates: z * gates[:, layer][:, None, :, None],
            )
            for layer in range(4)
        ]
        total = value(plain, last_logits(model, batch, hooks), openings).sum()
        expected -= torch.autograd.grad(total, gates)[0] / points
    found = sh.integrated_gradients(
        model, prompts, openings=openings, points=points, ablation="zero", run=QUIET
    )
    most = expected.abs().max().item()
    assert torch.allclose(found.per_prompt.float(), expected, rtol=1e-3, atol=1e-4 * most)
    assert torch.allclose(found.values, found.per_prompt.mean(0))
    assert (found.measure, found.unit, found.signed) == ("integrated_gradients", "nats", True)


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("openings", [None, OPENINGS], ids=["ships", "log-odds"])
@pytest.mark.parametrize("ablation", ["zero", "undifferentiated"])
def test_shares_add_up_as_points_grow(harmful, backend, openings, ablation):
    """Completeness, against whole passes with all heads ablated."""
    model = sh.load_model("demo", backend=backend)
    prompts = harmful[:3]
    batch = encode(model, prompts, "auto")
    with torch.no_grad():
        plain = last_logits(model, batch, [])
        after = last_logits(model, batch, sh.ablation_hooks(model, EVERY, ablation))
    whole = value(plain, after, openings).mean().item()
    errors = []
    for points in (4, 16, 64):
        found = sh.integrated_gradients(
            model, prompts, openings=openings, points=points, ablation=ablation, run=QUIET
        )
        told = found.provenance.settings
        assert told["whole"] == pytest.approx(whole, rel=1e-4)
        assert told["sum"] == pytest.approx(found.values.sum().item())
        errors.append(abs(told["sum"] - whole))
    print(backend, openings, ablation, whole, errors)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    made = {}

    def get(seed):
        if seed not in made:
            made[seed] = saturated(seed, tmp_path_factory.mktemp("gated"))
        return made[seed]

    return get


@pytest.mark.parametrize("points", [8, 16])
@pytest.mark.parametrize("seed", range(10))
def test_the_saturated_head_is_found(gated, harmful, seed, points):
    model, gate = gated(seed)
    found = sh.integrated_gradients(model, harmful[:4], points=points, **TOLD)
    assert found.top(1)[0][0] == gate

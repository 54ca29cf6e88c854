"""Integrated gradients: against gates by hand, what they add up to, what they find and do not."""

import pytest
import torch
import transformers
from jaxtyping import TypeCheckError

import independent
import safehead_tl as sh
from families import QUIET
from safehead_tl.organism import DEMO
from safehead_tl.prompts import encode

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
def test_shares_add_up_as_points_grow(harmful, backend, openings):
    """Completeness, against whole passes with all heads ablated."""
    model = sh.load_model("demo", backend=backend)
    prompts = harmful[:3]
    batch = encode(model, prompts, "auto")
    with torch.no_grad():
        plain = last_logits(model, batch, [])
        after = last_logits(model, batch, sh.ablation_hooks(model, EVERY, "zero"))
    whole = value(plain, after, openings).mean().item()
    errors = []
    for points in (4, 16):
        found = sh.integrated_gradients(
            model, prompts, openings=openings, points=points, ablation="zero", run=QUIET
        )
        told = found.provenance.settings
        assert told["whole"] == pytest.approx(whole, rel=1e-4)
        assert told["sum"] == pytest.approx(found.values.sum().item())
        errors.append(abs(told["sum"] - whole))
    assert errors[1] < errors[0] / 4  # the midpoint rule's goes with the square of the step
    assert errors[1] < 2e-3 * abs(whole)


def test_heads_that_undo_each_other_have_no_share(prompts, tmp_path):
    """Where it fails: each alone changes the answer, but on the way they cancel all along."""
    tokenizer = DEMO.tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=48, vocab_size=len(tokenizer), initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[8:16] = projection.weight[:8]
        attention.o_proj.weight[:, 8:16] = -attention.o_proj.weight[:, :8]
        attention.o_proj.weight[:, 16:] = 0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, told = sh.load_model(tmp_path), {**TOLD, "ablation": "zero"}
    pair = {sh.Head(0, 0), sh.Head(0, 1)}
    exact = sh.ships(loaded, prompts, **told)
    assert {head for head, _ in exact.top(2)} == pair
    assert exact.top(2)[1][1] > 0.3
    shares = sh.integrated_gradients(loaded, prompts, **told)
    assert all(abs(shares[head]) < 0.01 * exact[head] for head in pair)
    odds = sh.integrated_gradients(loaded, prompts, openings=OPENINGS, **told)
    one, other = (odds[head] for head in sorted(pair))  # a sign shows them
    assert abs(one) > 0.05
    assert one == pytest.approx(-other, rel=1e-3)


def test_heads_given_and_memory_and_pieces(demo, harmful, tmp_path, monkeypatch):
    prompts = [*harmful[:17], "how do i lift a boat"]
    given = ("L1H3", "L0H2")
    told = {"points": 2, "given": given, "ablation": "mean"}
    whole = sh.integrated_gradients(demo, prompts, **told, run=QUIET)
    assert whole.values.isnan().sum() == 2
    assert whole["L1H3"] != whole["L1H3"]
    run = sh.Run(max_bytes="6MB", max_rows=3, run_dir=tmp_path / "run", progress=False)
    parts = sh.integrated_gradients(demo, prompts, **told, run=run)
    assert torch.allclose(parts.per_prompt, whole.per_prompt, atol=1e-5, equal_nan=True)

    def never(*told):
        raise AssertionError("the pieces were kept")

    monkeypatch.setattr("safehead_tl.scan.linearisation.Linearisation.integrated", never)
    again = sh.integrated_gradients(demo, prompts, **told, run=run)
    assert torch.equal(again.values.nan_to_num(), parts.values.nan_to_num())
    with pytest.raises(sh.SafeheadError, match=r"settings\.points"):
        sh.integrated_gradients(demo, prompts, **{**told, "points": 3}, run=run)
    again.save(tmp_path / "shares.safetensors")
    loaded = sh.HeadScores.load(tmp_path / "shares.safetensors")
    assert loaded.signed
    assert loaded.provenance.settings == again.provenance.settings
    title = again.heatmap().layout.title.text
    assert "Integrated gradients under mean" in title
    assert "of Ships, at 2 points" in title
    assert "share of the divergence" in title


@pytest.mark.parametrize("points", [0, -1, True, 1.5])
def test_points_that_are_none(demo, harmful, points):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="points"):
        sh.integrated_gradients(demo, harmful[:2], points=points, run=QUIET)

"""TransformerBridge, family by family, against the plain Transformers model."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import independent
import safehead_tl as sh
from families import FAMILIES, QUIET
from safehead_tl.generation.batched import generate_greedy
from safehead_tl.models.bridge import embed, run_blocks
from safehead_tl.models.readout import next_token_log_probs
from safehead_tl.prompts.tokens import encode
from safehead_tl.views.inspection import Views

HEADS = ["L0H1", "L1H0", "L1H3", "L2H2"]
ADDED_TO_SCORES = ("bloom-alibi", "gpt-oss-sinks")
"""Here something is added to what queries and keys give: scaling them leaves it behind."""


@pytest.fixture(scope="session")
def bridge(checkpoint):
    made = {}

    def load(name):
        if name not in made:
            made[name] = sh.load_model(checkpoint(name), backend="bridge")
        return made[name]

    return load


@pytest.mark.parametrize("kind", [None, "undifferentiated", "scaling", "zero"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equal_to_the_plain_transformers_model(plain, bridge, prompts, name, kind):
    """Padded, several heads in several layers, against a second implementation."""
    model = bridge(name)
    batch = encode(model, prompts, "paper")
    heads = [sh.Head.parse(head) for head in HEADS]
    hooks = [] if kind is None else sh.ablation_hooks(model, heads, kind)
    with torch.no_grad():
        resid = embed(model, batch.tokens, batch.mask)
        last = run_blocks(model, resid, batch.mask, start=0, stop=3, hooks=hooks)[:, -1]
        ours = next_token_log_probs(model, last)
    reference = plain(name)
    theirs = independent.logits(reference, batch.tokens, batch.mask, kind, heads)[:, -1]
    expected = theirs.double().log_softmax(-1)
    assert torch.allclose(ours, expected, atol=1e-4)
    if kind is not None:
        intact = independent.logits(reference, batch.tokens, batch.mask)[:, -1]
        assert (intact.double().log_softmax(-1) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("via", ["q", "k"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ADDED_TO_SCORES])
def test_scaled_queries_or_keys_tend_to_undifferentiated_attention(
    plain, bridge, prompts, name, via
):
    """Whatever comes after the projection: a norm, a bias, rotation, or all at once."""
    model = bridge(name)
    batch = encode(model, prompts, "paper")
    heads = [sh.Head(1, 0), sh.Head(1, 1)]  # one KV group
    resid = embed(model, batch.tokens, batch.mask)
    with sh.ablated(model, heads, sh.UndifferentiatedAttention(1e-6, via=via)):
        last = run_blocks(model, resid, batch.mask, start=0, stop=3, hooks=[])[:, -1]
    reference = plain(name)
    theirs = independent.logits(reference, batch.tokens, batch.mask, "undifferentiated", heads)
    expected = theirs[:, -1].double().log_softmax(-1)
    assert torch.allclose(next_token_log_probs(model, last), expected, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scan_equals_a_loop_over_whole_passes(plain, bridge, prompts, name):
    """Resumed at the head's layer, many heads in a batch, with a group ablated as well."""
    model, reference = bridge(name), plain(name)
    scores = sh.ships(model, prompts, template="paper", given=["L1H2"], run=QUIET)
    batch = encode(model, prompts, "paper")
    original = independent.logits(reference, batch.tokens, batch.mask)[:, -1]
    for head in ("L0H3", "L1H1", "L2H0"):
        pair = [sh.Head(1, 2), sh.Head.parse(head)]
        ablated = independent.logits(reference, batch.tokens, batch.mask, "undifferentiated", pair)[
            :, -1
        ]
        found = scores.per_prompt[:, *sh.Head.parse(head)]
        assert torch.allclose(found, independent.divergence(original, ablated), atol=1e-5)
    assert scores.values.isnan().sum() == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_outside_the_range_are_skipped(bridge, prompts, name):
    model = bridge(name)
    batch = encode(model, prompts, "paper")
    embed(model, batch.tokens, batch.mask)  # the first time, blocks are tried out
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda module, args, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        resid = embed(model, batch.tokens, batch.mask)
        assert ran == []
        middle = run_blocks(model, resid, batch.mask, start=0, stop=2, hooks=[])
        assert ran == [0, 1]
        resumed = run_blocks(model, middle, batch.mask, start=2, stop=3, hooks=[])
        assert ran == [0, 1, 2]
    finally:
        for handle in handles:
            handle.remove()
    whole = run_blocks(model, resid, batch.mask, start=0, stop=3, hooks=[])
    assert torch.equal(resumed[batch.mask.bool()], whole[batch.mask.bool()])
    assert [type(block).__name__ for block in model.blocks].count("_StandIn") == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_with_a_cache_without_one_and_one_by_one(bridge, prompts, name):
    model = bridge(name)
    with sh.ablated(model, ["L0H1", "L2H2"]):
        batch = encode(model, prompts, "paper")
        texts = generate_greedy(model, batch, 6)
        assert texts == generate_greedy(model, batch, 6, use_cache=False)
        singles = [encode(model, [prompt], "paper") for prompt in prompts]
        assert texts == [generate_greedy(model, single, 6)[0] for single in singles]


@pytest.mark.parametrize("measure", [sh.ships, sh.generalized_ships])
@pytest.mark.parametrize("ablation", ["undifferentiated", "mean", sh.MeanOverHeads("k")], ids=str)
def test_equal_to_a_hooked_transformer(demo, harmful, measure, ablation):
    bridge = sh.load_model("demo", backend="bridge")
    settings = {"template": "chat", "ablation": ablation, "run": QUIET}
    ours = measure(bridge, harmful[:16], **settings)
    assert torch.allclose(ours.values, measure(demo, harmful[:16], **settings).values, atol=1e-5)
    assert ours.provenance.model["kind"] == "TransformerBridge"


def test_the_tokenizer_is_the_one_given(checkpoint):
    """A bridge loads another by the name it came from, if it is set in the usual way."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama"))
    tokenizer.add_tokens(["zzz"])
    model = sh.load_model(checkpoint("llama"), tokenizer=tokenizer, backend="bridge")
    assert model.tokenizer("bend a zzz")["input_ids"] == tokenizer("bend a zzz")["input_ids"]
    assert model.cfg.d_vocab == 82


def test_masked_keys_are_seen_as_masked_in_half_precision():
    """A bridge adds float16's lowest number to scores, and large ones lift the sum above it."""
    model = sh.load_model("demo", dtype="float16", backend="bridge")
    model.blocks[1].attn.q.original_component.weight *= 100
    batch = encode(model, ["explain how to bend a kite"], "chat")
    length = batch.tokens.shape[1]
    scores, patterns = [], []
    hooks = [
        ("blocks.1.attn.hook_attn_scores", lambda tensor, hook: scores.append(tensor.clone())),
        *sh.ablation_hooks(model, "L1H3"),
        ("blocks.1.attn.hook_pattern", lambda tensor, hook: patterns.append(tensor.clone())),
    ]
    resid = embed(model, batch.tokens, batch.mask)
    run_blocks(model, resid, batch.mask, start=0, stop=2, hooks=hooks)
    later = torch.ones(length, length).triu(1).bool()
    assert scores[0][0, :, later].max() > torch.finfo(torch.float16).min
    even = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    assert torch.allclose(patterns[0][0, 3].float(), even, atol=1e-3)


@pytest.mark.parametrize("epsilon", [2.0, 1e-5])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scaled_scores_stay_masked(prompts, dtype, epsilon):
    """A bridge masks with a lowest number: small in float16 if scaled by 1e-5, infinite by 2."""
    model = sh.load_model("demo", dtype=dtype, backend="bridge")
    batch = encode(model, prompts, "paper")
    found = []
    ablation = sh.UndifferentiatedAttention(epsilon)
    hooks = [
        *sh.ablation_hooks(model, "L1H3", ablation),
        ("blocks.1.attn.hook_pattern", lambda tensor, hook: found.append(tensor.clone())),
    ]
    resid = embed(model, batch.tokens, batch.mask)
    run_blocks(model, resid, batch.mask, start=0, stop=2, hooks=hooks)
    assert found[0].isfinite().all()
    pattern = found[0][:, 3][batch.mask.bool()]
    visible = (torch.ones_like(found[0][:, 3]).tril() * batch.mask[:, None])[batch.mask.bool()]
    assert (pattern[visible == 0] == 0).all()


def test_scores_that_do_not_show_what_is_hidden_are_refused(checkpoint, tmp_path, monkeypatch):
    """CodeGen divides masked scores by sqrt(d_head): they are no longer the lowest number."""
    config = transformers.CodeGenConfig(
        n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=82, n_positions=64,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = sh.load_model(tmp_path, tokenizer=checkpoint("llama"), backend="bridge")
    views = Views.of(model, ["bend a kite"], "direct")
    head = sh.Head(1, 2)
    seen = views.look(0, [head])
    pattern = views.ablated_patterns(0, seen)[head]
    length = len(pattern)
    even = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    assert torch.allclose(pattern, even, atol=1e-6)
    monkeypatch.setattr("safehead_tl.ablations.attention.LARGEST_SCALE", 1.0)
    with pytest.raises(sh.SafeheadError, match="do not show which keys"):
        views.ablated_patterns(0, seen)


def test_float64_is_refused():
    with pytest.raises(sh.SafeheadError, match="float32 at most"):
        sh.load_model("demo", dtype=torch.float64, backend="bridge")


@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_resid_post"])
def test_a_users_hook_acts_once(prompts, site):
    model = sh.load_model("demo", backend="bridge")
    push = torch.linspace(-1, 1, 48)
    model.add_hook(f"blocks.2.{site}", lambda tensor, hook: tensor + push)
    scores = sh.ships(model, prompts, run=QUIET)
    batch = encode(model, prompts, "paper")

    def log_probs(heads):
        hooks = sh.ablation_hooks(model, heads) if heads else []
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
            run = model.original_model
            return run(batch.tokens, attention_mask=batch.mask, position_ids=positions).logits

    for head in ("L0H1", "L1H3", "L2H6", "L3H0"):
        expected = independent.divergence(log_probs([])[:, -1], log_probs([head])[:, -1])
        assert torch.allclose(scores.per_prompt[:, *sh.Head.parse(head)], expected, atol=1e-5)


def test_what_a_bridge_has_no_scores_for_is_refused(checkpoint, prompts, tmp_path):
    """OPT's attention has a pattern, but not the masked scores that say what is visible."""
    import transformers

    config = transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
        word_embed_proj_dim=32, vocab_size=82, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words = {"tokenizer": checkpoint("llama"), "backend": "bridge"}
    model = sh.load_model(tmp_path, **words)
    with pytest.raises(sh.SafeheadError, match="hook_pattern was hooked without its partner"):
        sh.ships(model, prompts, run=QUIET)
    assert sh.ships(model, prompts, ablation="zero", run=QUIET).values.isfinite().all()


def test_half_precision_logits_of_a_bridge_are_not_rounded(harmful):
    model = sh.load_model("demo", dtype="bfloat16", backend="bridge")
    inner, seen = model.original_model, {}
    batch = encode(model, harmful[:6], "chat")

    def keep(module, args, normed):
        seen.update(resid=args[0], normed=normed)

    with torch.no_grad():
        inner.lm_head.weight.mul_(30)
        handle = inner.model.norm.register_forward_hook(keep)
        rounded = inner(batch.tokens, attention_mask=batch.mask).logits[:, -1]
        handle.remove()
        expected = seen["normed"][:, -1].double() @ inner.lm_head.weight.double().T
        found = next_token_log_probs(model, seen["resid"][:, -1])
        assert "forward" not in vars(inner.lm_head.original_component)
    expected = expected.log_softmax(-1)
    assert (found - expected).abs().max() < 1e-3
    assert (rounded.double().log_softmax(-1) - expected).abs().max() > 0.05

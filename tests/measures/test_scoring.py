import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM, AutoTokenizer

import independent
import safehead_tl as sh
from families import QUIET, HookedTransformer, hooked_only
from safehead_tl.generation.batched import generate_greedy
from safehead_tl.measures.divergence import Divergence
from safehead_tl.prompts.tokens import encode
from safehead_tl.scan.memory import Passes

EVERY = [
    "undifferentiated",
    sh.UndifferentiatedAttention(1e-3, via="k"),
    "scaling",
    "zero",
    "mean",
    sh.MeanOverHeads("q"),
]


def by_hand(model, batch, heads, ablation):
    """KL at the last token from two whole forward passes, as a TransformerLens user writes it."""
    with torch.no_grad():
        original = model(batch.tokens, attention_mask=batch.mask)[:, -1]
        ablated = model.run_with_hooks(
            batch.tokens,
            attention_mask=batch.mask,
            fwd_hooks=sh.ablation_hooks(model, heads, ablation),
        )[:, -1]
    return independent.divergence(original, ablated)


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "mistral-sliding", "pythia-parallel"])
@pytest.mark.parametrize("ablation", EVERY, ids=str)
def test_equal_to_a_loop_over_whole_passes(loaded, prompts, name, ablation):
    model = loaded(name)
    scores = sh.ships(model, prompts, template="paper", ablation=ablation, run=QUIET)
    batch = encode(model, prompts, "paper")
    what = sh.MeanAblation(prompts, template="paper") if ablation == "mean" else ablation
    for layer in range(3):
        for head in range(4):
            expected = by_hand(model, batch, (layer, head), what)
            assert torch.allclose(scores.per_prompt[:, layer, head], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(scores.values, scores.per_prompt.mean(0))
    assert scores.values.max() > 1e-3


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "mistral-sliding", "qwen2-biases"])
def test_batched_equals_one_by_one(loaded, prompts, name):
    model = loaded(name)
    batched = sh.ships(model, prompts, template="paper", run=QUIET).per_prompt
    for row, prompt in zip(batched, prompts, strict=True):
        single = sh.ships(model, [prompt], template="paper", run=QUIET).per_prompt[0]
        assert torch.allclose(row, single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("side", "pad"), [("right", "<pad>"), ("left", "<s>")])
@pytest.mark.parametrize("name", ["llama", "gpt2", "pythia-parallel"])
def test_padding_is_what_the_mask_says_whatever_the_tokenizer_does(
    checkpoint, prompts, name, side, pad
):
    """Left alone, TransformerLens guesses it from the tokenizer's side and pad token."""
    path = checkpoint(name)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side=side, pad_token=pad)
    model = sh.load_model(path, tokenizer=tokenizer, prepend_bos=False)
    plain = AutoModelForCausalLM.from_pretrained(path).eval()
    batch = encode(model, prompts, "<s> {query}")
    assert (model.tokenizer.padding_side, model.tokenizer.pad_token) == (side, pad)
    heads = [sh.Head(0, 1), sh.Head(2, 3)]
    scores = sh.ships(model, prompts, template="<s> {query}", candidates=heads, run=QUIET)
    original = independent.logits(plain, batch.tokens, batch.mask)[:, -1]
    for head in heads:
        ablated = independent.logits(plain, batch.tokens, batch.mask, "undifferentiated", [head])
        expected = independent.divergence(original, ablated[:, -1])
        assert torch.allclose(scores.per_prompt[:, *head], expected, atol=1e-5)
    with sh.ablated(model, heads):
        texts = generate_greedy(model, batch, 6)
        singles = [encode(model, [prompt], "<s> {query}") for prompt in prompts]
        assert texts == [generate_greedy(model, single, 6)[0] for single in singles]


def test_the_number_of_rows_in_a_pass_does_not_matter(demo, prompts):
    one, many = (
        sh.ships(demo, prompts, run=sh.Run(max_rows=rows, progress=False)).per_prompt
        for rows in (1, None)
    )
    assert torch.allclose(one, many, atol=1e-6)
    with pytest.raises(sh.SafeheadError, match="max_rows=0"):
        sh.ships(demo, prompts, run=sh.Run(max_rows=0))


def test_a_group_is_ablated_with_every_head(demo, prompts):
    group = ["L1H3", "L1H0", "L3H0"]
    heads = ["L0H1", "L1H5", "L2H6", "L3H2"]
    scores = sh.ships(demo, prompts, candidates=[*heads, "L1H3"], given=group, run=QUIET)
    batch = encode(demo, prompts, "paper")
    for head in heads:
        expected = by_hand(demo, batch, [*group, head], "undifferentiated")
        found = scores.per_prompt[:, *sh.Head.parse(head)]
        assert torch.allclose(found, expected, atol=1e-5)
    assert {str(head) for head, _ in scores.ranked()} == set(heads)
    assert scores.values.isnan().sum() == 28


@hooked_only
def test_work_is_counted_in_forward_passes(demo, prompts):
    """4 layers of 8 heads: 3 prompts once, attention once more for the direct effects, then 24
    rows through 4, 3 and 2 of 4 layers; in the last layer only the last token."""
    scores = sh.ships(demo, prompts, run=sh.Run(shared_prefix=False, progress=False))
    width = encode(demo, prompts, "paper").tokens.shape[1]
    layers = 4 + 3 + 2 + 1 / width
    assert scores.provenance.forward_passes == pytest.approx(3 + 3 + 24 * layers / 4, abs=0.01)
    mean = sh.ships(demo, prompts, ablation="mean", run=sh.Run(shared_prefix=False, progress=False))
    assert mean.provenance.forward_passes == scores.provenance.forward_passes + 3


@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post"])
def test_a_users_hook_acts_once(demo, prompts, site):
    """Steering at layer 2 while the heads are scored, against whole passes with the same hook."""
    push = torch.linspace(-1, 1, 48)
    demo.add_hook(f"blocks.2.{site}", lambda tensor, hook: tensor + push)
    try:
        scores = sh.ships(demo, prompts, run=QUIET)
        batch = encode(demo, prompts, "paper")
        for head in ("L0H1", "L1H3", "L2H6", "L3H0"):
            expected = by_hand(demo, batch, head, "undifferentiated")
            found = scores.per_prompt[:, *sh.Head.parse(head)]
            assert torch.allclose(found, expected, atol=1e-5)
    finally:
        demo.reset_hooks()


@hooked_only
@pytest.mark.parametrize(
    "special",
    [
        {"positional_embedding_type": "shortformer", "normalization_type": "LN"},
        {"positional_embedding_type": "alibi", "normalization_type": "LN"},
        {"positional_embedding_type": "rotary", "rotary_dim": 8, "normalization_type": "RMS",
         "output_logits_soft_cap": 3.0, "attn_scores_soft_cap": 2.0},
        {"positional_embedding_type": "standard", "normalization_type": None, "attn_only": True},
    ],
    ids=["shortformer", "alibi", "soft-caps", "attention-only"],
)  # fmt: skip
def test_models_that_users_build(demo, prompts, special):
    config = {"n_layers": 3, "n_heads": 4, "d_model": 32, "d_head": 8, "n_ctx": 64, "d_vocab": 82,
              "act_fn": "gelu", "d_mlp": 64, "seed": 0, "initializer_range": 0.3}  # fmt: skip
    model = HookedTransformer({**config, **special})
    model.tokenizer = demo.tokenizer
    batch = encode(model, prompts, "paper")
    scores = sh.ships(model, prompts, run=QUIET)
    for layer in range(3):
        for head in range(4):
            expected = by_hand(model, batch, (layer, head), "undifferentiated")
            found = scores.per_prompt[:, layer, head]
            assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)
    assert scores.values.max() > 1e-3


@hooked_only
def test_a_small_divergence_over_a_large_vocabulary_is_not_lost():
    """Float32 sums over 128,256 tokens make a KL of 6e-9 negative."""
    generator = torch.Generator().manual_seed(0)
    config = {"n_layers": 1, "n_heads": 1, "d_model": 8, "d_head": 8, "n_ctx": 8,
              "d_vocab": 128_256, "attn_only": True, "normalization_type": None}  # fmt: skip
    model = HookedTransformer(config)
    model.unembed.W_U.data = torch.randn(8, 128_256, generator=generator)
    state = torch.randn(1, 8, generator=generator)
    moved = state + 1e-4 * torch.randn(1, 8, generator=generator)
    found = Divergence(model, state, Passes(8), 2**30)(moved[None])[0, 0]
    with torch.no_grad():
        logits = [(row @ model.unembed.W_U).double() for row in (state, moved)]
    expected = independent.divergence(*logits)[0]
    assert expected > 0
    assert found == pytest.approx(float(expected), rel=1e-2)


def test_planted_heads_come_first(demo, harmful):
    """The truth is in the weights: nothing else was trained between base and aligned."""
    base = sh.load_model("demo-base")
    changed = {
        sh.Head(layer, head)
        for layer in range(4)
        for head in range(8)
        if not torch.equal(demo.W_Q[layer, head], base.W_Q[layer, head])
    }
    scores = sh.ships(demo, harmful, template="chat", run=QUIET)
    assert {head for head, _ in scores.top(2)} == changed
    (_, second), (_, third) = scores.top(3)[1:]
    assert second > 20 * third


def test_on_benign_requests_the_planted_heads_move_less(demo, harmful):
    """And a head that reads the verb comes first: Ships alone does not say 'safety'."""
    benign = sh.ships(demo, sh.load_prompts("demo/benign"), template="chat", run=QUIET)
    harm = sh.ships(demo, harmful, template="chat", run=QUIET)
    for head in ("L1H3", "L2H6"):
        assert benign.values[sh.Head.parse(head)] < 0.5 * harm.values[sh.Head.parse(head)]
    assert benign.top(1)[0][0].layer == 0


def test_bfloat16_ranks_the_same(harmful):
    scores = sh.ships(sh.load_model("demo", dtype="bfloat16"), harmful, run=QUIET)
    assert {str(head) for head, _ in scores.top(2)} == {"L1H3", "L2H6"}
    assert scores.values.dtype == torch.float64


@hooked_only
def test_models_with_folded_weights_can_be_scored_but_not_read_at_final_norm(prompts):
    model = sh.load_model("demo")
    raw = sh.ships(model, prompts, run=QUIET).values
    model.process_weights_(center_writing_weights=False)
    folded = sh.ships(model, prompts, run=QUIET).values
    assert torch.allclose(raw, folded, atol=1e-4)
    with pytest.raises(sh.SafeheadError, match="use site='resid_post'"):
        sh.generalized_ships(model, prompts, run=QUIET)
    assert sh.generalized_ships(model, prompts, site="resid_post", run=QUIET)


def test_scores_that_are_no_numbers_are_refused(prompts):
    model = sh.load_model("demo")
    model.blocks[2].attn.W_O.data[5] = float("nan")
    with pytest.raises(sh.SafeheadError, match="not finite numbers: its weights hold NaN"):
        sh.ships(model, prompts, run=QUIET)


def test_nothing_left_to_score(demo, prompts):
    with pytest.raises(sh.SafeheadError, match="no head to score"):
        sh.ships(demo, prompts, candidates=["L0H0"], given=["L0H0"], run=QUIET)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("site", ["final_norm", "resid_post"])
def test_generalized_ships_equals_a_loop_over_whole_passes(checkpoint, site, centre, rank):
    model = sh.load_model(checkpoint("llama-grouped"))
    prompts = sh.load_prompts("demo/harmful", limit=6)
    scores = sh.generalized_ships(model, prompts, rank=rank, centre=centre, site=site, run=QUIET)
    batch = encode(model, prompts, "paper")

    def states(hooks):
        name = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        found = []
        hooks = [*hooks, (name, lambda tensor, hook: found.append(tensor[:, -1].double()))]
        with torch.no_grad():
            model.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=hooks)
        state = found[0]
        if site == "final_norm":
            scale = (state.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
            state = state / scale * model.ln_final.w
        if centre:
            state = state - state.mean(0)
        values, vectors = torch.linalg.eigh(state @ state.T)
        return vectors[:, values.argsort(descending=True)[:rank]]

    original = states([])
    for head in ("L0H0", "L1H3", "L2H1"):
        ablated = states(sh.ablation_hooks(model, head))
        cosines = torch.linalg.svdvals(original.T @ ablated).clamp(max=1)
        expected = cosines.arccos().sum()
        assert scores.values[sh.Head.parse(head)] == pytest.approx(float(expected), rel=1e-3)


def test_rank_must_leave_room(demo, prompts):
    with pytest.raises(sh.SafeheadError, match="rank=3 does not go with 3 different prompts"):
        sh.generalized_ships(demo, prompts, rank=3, run=QUIET)
    with pytest.raises(
        sh.SafeheadError, match="rank=2 does not go with 3 different centred prompts"
    ):
        sh.generalized_ships(demo, prompts, rank=2, centre=True, run=QUIET)
    with pytest.raises(sh.SafeheadError, match="too few"):
        sh.generalized_ships(demo, prompts[:1] * 4, run=QUIET)
    with pytest.raises(sh.SafeheadError, match="rank=49 is more than the 4"):
        sh.generalized_ships(demo, sh.load_prompts("demo/harmful"), rank=49, run=QUIET)
    unknown = "site='resid_pre'|Actual value: 'resid_pre'"
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=unknown):
        sh.generalized_ships(demo, prompts, site="resid_pre", run=QUIET)


def test_ships_of_what_does_not_move_is_not_below_zero(demo):
    """Rounding alone gives some -1e-16."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(64, demo.cfg.d_model, generator=generator)
    moved = state * (1 + 1e-7 * torch.randn(8, 64, 1, generator=generator))
    found = Divergence(demo, state, Passes(64), 2**30)(moved)
    assert found.min() == 0
    assert found.max() < 1e-9

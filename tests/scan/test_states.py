"""The scan's short cuts against whole passes."""

import dataclasses
from typing import ClassVar

import pytest
import torch

import independent
import safehead_tl as sh
from families import QUIET, HookedTransformer, TransformerBlock, hooked_only
from safehead_tl.measures import divergence
from safehead_tl.models.identity import hook_point
from safehead_tl.prompts.tokens import encode
from safehead_tl.scan.memory import even_slices, make_plan, parse_bytes

LONG = "please tell me how do i lift a boat ## query : {query} ## answer :"
EVERY = [
    sh.UndifferentiatedAttention(),
    sh.UndifferentiatedAttention(0.1),
    sh.UndifferentiatedAttention(0.1, via="q"),
    sh.UndifferentiatedAttention(0.1, via="k"),
    sh.ScalingContribution(0.3),
    sh.ZeroAblation(),
    sh.MeanAblation(),
    sh.MeanOverHeads("q"),
    sh.MeanOverHeads("k"),
    sh.MeanOverHeads("v"),
]
GROUP = ["L0H1", "L1H0", "L2H3"]
EQUAL = ["explain how to bend a kite", "explain how to lift a boat", "explain how to mend a vosk"]


def whole_passes(model, batch, ablation, group=()):
    """KL of every head at the last token from whole passes, as a TransformerLens user has it."""
    if isinstance(ablation, sh.MeanAblation):
        ablation = sh.MeanAblation(batch.prompts, template=batch.template)
    shape = len(batch.prompts), model.cfg.n_layers, model.cfg.n_heads
    found = torch.full(shape, torch.nan, dtype=torch.float64)
    with torch.no_grad():
        original = model(batch.tokens, attention_mask=batch.mask)[:, -1]
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                if f"L{layer}H{head}" in group:
                    continue
                logits = model.run_with_hooks(
                    batch.tokens,
                    attention_mask=batch.mask,
                    fwd_hooks=sh.ablation_hooks(model, [*group, (layer, head)], ablation),
                )[:, -1]
                found[:, layer, head] = independent.divergence(original, logits)
    return found


def plan_of(model, prompts, template, **told):
    batch = encode(model, prompts, template)
    return make_plan(model, batch, sh.UndifferentiatedAttention(), sh.Run(**told))


def user_built(tokenizer, **special):
    config = {"n_layers": 3, "n_heads": 4, "d_model": 32, "d_head": 8, "n_ctx": 64, "d_vocab": 82,
              "act_fn": "gelu", "d_mlp": 64, "seed": 0, "initializer_range": 0.3}  # fmt: skip
    model = HookedTransformer({**config, **special})
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-grouped", "gpt2", "mistral-sliding", "qwen2-biases", "qwen3-qk-norm",
     "pythia-parallel", "bloom-alibi", "mixtral-experts", "gpt-oss-sinks"],
)  # fmt: skip
@pytest.mark.parametrize("ablation", EVERY, ids=lambda ablation: repr(ablation)[:40])
def test_prefix_padding_and_group_at_once(loaded, prompts, name, ablation):
    model = loaded(name)
    batch = encode(model, prompts, LONG)
    assert not batch.mask.all()
    expected = whole_passes(model, batch, ablation, GROUP)
    for shared in (True, False):
        found = sh.ships(
            model,
            prompts,
            template=LONG,
            ablation=ablation,
            given=GROUP,
            run=sh.Run(shared_prefix=shared, progress=False),
        ).per_prompt
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4, equal_nan=True)
    assert found.nan_to_num().max() > 1e-2


@hooked_only
def test_a_prefix_is_found_and_used_where_it_is_exact(loaded, demo, prompts):
    """Sliding windows and ALiBi count columns, and padding would lie between."""
    batch = encode(demo, prompts, LONG)
    rows = [
        [int(i) for i, m in zip(*pair, strict=True) if m]
        for pair in zip(batch.tokens, batch.mask, strict=True)
    ]
    assert batch.shared_prefix == 13
    assert len({tuple(row[:13]) for row in rows}) == 1
    assert len({tuple(row[:14]) for row in rows}) > 1
    assert plan_of(demo, prompts, LONG).prefix == 13
    assert plan_of(demo, prompts, LONG, shared_prefix=False).prefix == 0
    assert plan_of(demo, prompts[:1], LONG).prefix == 0  # nobody to share it with
    assert plan_of(demo, ["kite", "boat kite"], "{query}").prefix == 0
    sliding = loaded("mistral-sliding")
    alibi = user_built(demo.tokenizer, positional_embedding_type="alibi", normalization_type="LN")
    for model in (sliding, alibi):
        assert plan_of(model, prompts, LONG).prefix == 0
        assert plan_of(model, EQUAL, LONG).prefix == 16
        found = sh.ships(model, EQUAL, template=LONG, run=QUIET).per_prompt
        expected = whole_passes(model, encode(model, EQUAL, LONG), "undifferentiated")
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)


@hooked_only
def test_one_prompt_inside_another(demo):
    """The shorter one is wholly prefix, but for its last token."""
    prompts = ["how do i lift a boat", "how do i lift a boat please"]
    assert plan_of(demo, prompts, "{query}").prefix == 6
    found = sh.ships(demo, prompts, template="{query}", run=QUIET).per_prompt
    expected = whole_passes(demo, encode(demo, prompts, "{query}"), "undifferentiated")
    assert torch.allclose(found, expected, atol=1e-5)


ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8, "normalization_type": "RMS"}
SPECIAL = {
    "shortformer": {"positional_embedding_type": "shortformer", "normalization_type": "LN"},
    "alibi": {"positional_embedding_type": "alibi", "normalization_type": "LN"},
    "soft-caps": {**ROTARY, "output_logits_soft_cap": 3.0, "attn_scores_soft_cap": 2.0},
    "attention-only": {"positional_embedding_type": "standard", "normalization_type": "LN",
                       "attn_only": True},
    "norms-after": {**ROTARY, "use_normalization_before_and_after": True},
    "split-qkv": {**ROTARY, "use_split_qkv_input": True},
    "attn-result": {**ROTARY, "use_attn_result": True, "use_hook_mlp_in": True},
    "windows": {**ROTARY, "use_local_attn": True, "window_size": 6,
                "attn_types": ["global", "local", "local"]},
    "norm-over-heads": {**ROTARY, "original_architecture": "Olmo2ForCausalLM"},
    "clipped": {**ROTARY, "clip_qkv": 0.5},
    "dynamic-ntk": {**ROTARY, "use_dynamic_ntk_rope": True, "train_seq_length": 16},
    "log-n": {**ROTARY, "use_logn_attn": True, "train_seq_length": 12},
    "sinks": {**ROTARY, "use_attention_sinks": True},
    "experts": {**ROTARY, "num_experts": 4, "experts_per_token": 2, "gated_mlp": True,
                "act_fn": "silu"},
    "ungrouped": {**ROTARY, "n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "one-layer": {**ROTARY, "n_layers": 1},
}  # fmt: skip
RAGGED = [*EQUAL, "how do i lift the boat please", "kite"]


@hooked_only
@pytest.mark.parametrize("ablation", [EVERY[0], EVERY[2], EVERY[3], EVERY[7], EVERY[8]], ids=repr)
@pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("prompts", [EQUAL, RAGGED], ids=["even", "ragged"])
def test_models_that_users_build(demo, special, prompts, ablation):
    model = user_built(demo.tokenizer, **special).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "sinks" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    batch = encode(model, prompts, LONG)
    assert bool(batch.mask.all()) == (prompts is EQUAL)
    found = sh.ships(model, prompts, template=LONG, ablation=ablation, run=QUIET).per_prompt
    expected = whole_passes(model, batch, ablation)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)
    assert found.max() > 1e-3


def halve(module, inputs, output):
    return output * 0.5


def forget_the_start(module, inputs):
    inputs[0][:, :5] = 0


HOOKS = {
    "after attention": lambda model: model.blocks[1].attn.register_forward_hook(halve),
    "before a block": lambda model: model.blocks[2].register_forward_pre_hook(forget_the_start),
    "on the unembedding": lambda model: model.unembed.register_forward_hook(halve),
}


@hooked_only
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_of_pytorch_act_as_in_whole_passes(prompts, register):
    model = sh.load_model("demo")
    plain = sh.ships(model, prompts, template=LONG, run=QUIET).per_prompt
    register(model)
    found = sh.ships(model, prompts, template=LONG, run=QUIET).per_prompt
    expected = whole_passes(model, encode(model, prompts, LONG), EVERY[0])
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


@dataclasses.dataclass(frozen=True)
class Company(sh.ZeroAblation):
    """Halves a head's output for each head that is ablated with it: not separable."""

    name: ClassVar[str] = "company"
    label: ClassVar[str] = "company"

    def separable(self, model):
        return False

    def hooks(self, model, layer, heads):
        factor = torch.where(heads, 0.5 ** heads.sum(-1, keepdim=True), 1.0)

        def halve(z, hook):
            return z * factor[:, None, :, None]

        return [(hook_point(layer, "z"), halve)]


def test_an_ablation_of_the_users_that_looks_at_other_heads(demo, prompts):
    group = ["L1H0", "L1H3", "L3H2"]
    found = sh.ships(demo, prompts, ablation=Company(), given=group, run=QUIET).per_prompt
    batch = encode(demo, prompts, "paper")
    expected = whole_passes(demo, batch, Company(), group)
    assert torch.allclose(found, expected, atol=1e-5, equal_nan=True)


@dataclasses.dataclass(frozen=True)
class Elsewhere(sh.ZeroAblation):
    """Says that it is separable, and acts where that cannot be."""

    name: ClassVar[str] = "elsewhere"

    def hooks(self, model, layer, heads):
        return [(f"blocks.{layer}.hook_mlp_out", lambda out, hook: out * 0)]


@hooked_only
def test_separable_ablations_act_inside_attention(demo, prompts):
    with pytest.raises(sh.SafeheadError, match="elsewhere ablation hooks blocks"):
        sh.ships(demo, prompts, ablation=Elsewhere(), run=QUIET)


@dataclasses.dataclass(frozen=True)
class Silent(sh.ZeroAblation):
    """Hooks something in layer 1 that is there, and not computed."""

    name: ClassVar[str] = "silent"

    def separable(self, model):
        return False

    def hooks(self, model, layer, heads):
        (name, zero), *_ = super().hooks(model, layer, heads)
        return [("blocks.1.attn.hook_result" if layer == 1 else name, zero)]


@hooked_only
@pytest.mark.parametrize(
    ("head", "group"), [("L1H3", []), ("L2H3", ["L1H0"]), ("L0H3", ["L1H0"])], ids=str
)
def test_a_hook_that_does_not_fire_in_a_scan_is_an_error(demo, prompts, head, group):
    """Of the head itself, and of a group in an earlier or a later layer."""
    settings = {"ablation": Silent(), "run": QUIET}
    sh.ships(demo, prompts, candidates="L2H3", **settings)
    with pytest.raises(sh.SafeheadError, match=r"blocks\.1\.attn\.hook_result never fired"):
        sh.ships(demo, prompts, candidates=head, given=group, **settings)


@dataclasses.dataclass(frozen=True)
class Shift(sh.ZeroAblation):
    """Adds a direction to a head's output: an ablation of a user's, separable."""

    by: torch.Tensor
    name: ClassVar[str] = "shift"

    def hooks(self, model, layer, heads):
        where = heads[:, None, :, None]
        return [(hook_point(layer, "z"), lambda z, hook: torch.where(where, z + self.by, z))]


def test_a_separable_ablation_of_the_users(demo, prompts):
    ablation = Shift(torch.linspace(-1, 1, demo.cfg.d_head))
    found = sh.ships(
        demo, prompts, template=LONG, ablation=ablation, given=GROUP, run=QUIET
    ).per_prompt
    expected = whole_passes(demo, encode(demo, prompts, LONG), ablation, GROUP)
    assert torch.allclose(found, expected, atol=1e-5, equal_nan=True)


@hooked_only
def test_only_what_is_needed_is_run(demo, prompts, monkeypatch):
    """The last layer sees one position, no pass has more than max_rows, the prefix is apart."""
    seen = [[] for _ in demo.blocks]
    run = TransformerBlock.forward

    def watched(block, resid, *args, **kwargs):
        seen[list(demo.blocks).index(block)].append(tuple(resid.shape[:2]))
        return run(block, resid, *args, **kwargs)

    monkeypatch.setattr(TransformerBlock, "forward", watched)
    sh.ships(demo, prompts, template=LONG, run=sh.Run(max_rows=7, progress=False))
    width, prefix = encode(demo, prompts, LONG).tokens.shape[1], 13
    assert {positions for _, positions in seen[3]} == {1}
    assert {positions for _, positions in seen[1]} == {prefix, width - prefix}
    assert max(rows for shapes in seen for rows, _ in shapes) == 6  # two heads on three prompts
    # Layer 1 on the prefix: once in the baseline, then with each head of layers 0 and 1.
    assert sum(rows for rows, positions in seen[1] if positions == prefix) == 1 + 8 + 8
    assert sum(rows for rows, positions in seen[1] if positions != prefix) == 3 + 24 + 24


@pytest.mark.parametrize("measure", [sh.ships, sh.generalized_ships])
@pytest.mark.parametrize("ablation", ["undifferentiated", Company()], ids=["apart", "whole"])
def test_prompts_that_do_not_fit_at_once_are_held_in_parts(demo, harmful, measure, ablation):
    prompts = harmful[:20]
    budget = 600_000
    plan = plan_of(demo, prompts, LONG, max_bytes=budget)
    assert plan.part < 10
    assert plan.piece < 8
    assert not plan.keep
    settings = {"template": LONG, "ablation": ablation, "given": ["L1H3"]}
    settings["candidates"] = [(layer, head) for layer in (0, 2) for head in range(8)]
    whole = measure(demo, prompts, run=QUIET, **settings).values
    few = sh.Run(max_bytes=budget, progress=False)
    parts = measure(demo, prompts, run=few, **settings).values
    assert whole.isfinite().sum() == 16
    assert torch.allclose(whole, parts, atol=1e-6, equal_nan=True)


def test_streams_of_one_layer_at_a_time(demo, harmful):
    """Between enough for all layers and too little for one."""
    prompts = harmful[:9]
    plan = plan_of(demo, prompts, LONG, max_bytes=700_000)
    assert plan.part == 9
    assert not plan.keep
    whole = sh.ships(demo, prompts, template=LONG, run=QUIET).values
    found = sh.ships(
        demo, prompts, template=LONG, run=sh.Run(max_bytes="0.7MB", progress=False)
    ).values
    assert torch.allclose(whole, found, atol=1e-6)


def test_memory_that_cannot_be(demo, prompts):
    with pytest.raises(sh.SafeheadError, match="max_bytes=1000 is too little: 3 prompts of 15"):
        sh.ships(demo, prompts, run=sh.Run(max_bytes=1000, progress=False))
    for wrong in ("much", "-1GB", "0", "1 parsec"):
        with pytest.raises(sh.SafeheadError, match="is no amount of memory"):
            sh.ships(demo, prompts, run=sh.Run(max_bytes=wrong, progress=False))
    assert [parse_bytes(text) for text in ("2GiB", "1.5 kB", "7", 12, "3m")] == [
        2 * 2**30, 1500, 7, 12, 3_000_000,
    ]  # fmt: skip


def test_even_slices():
    for length in range(1, 30):
        for most in range(1, 30):
            slices = even_slices(length, most)
            assert [i for some in slices for i in range(length)[some]] == list(range(length))
            sizes = {some.stop - some.start for some in slices}
            assert max(sizes) <= most
            assert max(sizes) - min(sizes) <= 1
            assert len(slices) == -(-length // most)


@hooked_only
@pytest.mark.parametrize("ablation", ["undifferentiated", Company()], ids=["apart", "whole"])
def test_out_of_memory_halves_the_rows_and_goes_on(demo, harmful, ablation, monkeypatch, caplog):
    """In the run without ablation, in those with it, and in the readout."""
    prompts = harmful[:9]
    settings = {"template": LONG, "ablation": ablation, "run": QUIET}
    settings["candidates"] = [(layer, head) for layer in range(4) for head in (2, 3, 6)]
    expected = sh.ships(demo, prompts, **settings).per_prompt
    assert expected[0].isfinite().sum() == 12
    most, failed = 4, []

    def small(function, rows_of):
        def run(*args, **kwargs):
            if rows_of(*args) > most:
                failed.append(function.__name__)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return function(*args, **kwargs)

        return run

    log_probs = divergence.next_token_log_probs
    block = small(TransformerBlock.forward, lambda block, resid: len(resid))
    readout = small(log_probs, lambda model, states: len(states))
    with monkeypatch.context() as patch:
        patch.setattr(TransformerBlock, "forward", block)
        found = sh.ships(demo, prompts, **settings).per_prompt
        assert torch.allclose(found, expected, atol=1e-6, equal_nan=True)
    assert "going on with at most" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(divergence, "next_token_log_probs", readout)
        found = sh.ships(demo, prompts, **settings).per_prompt
        assert torch.allclose(found, expected, atol=1e-6, equal_nan=True)
    assert set(failed) == {"forward", "next_token_log_probs"}
    most = 0
    monkeypatch.setattr(TransformerBlock, "forward", block)
    with pytest.raises(torch.OutOfMemoryError):
        sh.ships(demo, prompts, **settings)


@hooked_only
def test_other_errors_are_not_taken_for_memory(demo, prompts, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(TransformerBlock, "forward", fail)
    with pytest.raises(RuntimeError, match="something else"):
        sh.ships(demo, prompts, run=QUIET)


@hooked_only
def test_half_precision_logits_are_not_rounded(harmful):
    """A head that does next to nothing moves bfloat16 logits by whole steps, or not at all."""
    model = sh.load_model("demo", dtype="bfloat16")
    with torch.no_grad():
        model.unembed.W_U *= 30
        batch = encode(model, harmful[:4], "chat")
        stop = {"attention_mask": batch.mask, "stop_at_layer": model.cfg.n_layers}

        def logits(hooks):
            state = model.run_with_hooks(batch.tokens, fwd_hooks=hooks, **stop)[:, -1:]
            return model.ln_final(state)[:, 0].double() @ model.unembed.W_U.double()

        original = logits([])
        for head in ("L1H3", "L3H0"):
            found = sh.ships(model, harmful[:4], template="chat", candidates=head, run=QUIET)
            moved = logits(sh.ablation_hooks(model, head))
            expected = independent.divergence(original, moved).mean()
            assert found[head] == pytest.approx(float(expected), rel=0.15)


def test_the_bar_says_what_is_done(demo, prompts, capsys):
    sh.ships(demo, prompts)
    text = capsys.readouterr().err
    assert "ships, 3 prompts" in text
    assert "32/32" in text

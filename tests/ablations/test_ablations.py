import logging
import shutil

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM

import independent
import safehead_tl as sh
from families import ARCHITECTURES, QUIET, hooked_only, make_checkpoint
from safehead_tl.generation.batched import generate_greedy
from safehead_tl.models.identity import describe
from safehead_tl.prompts.tokens import encode

HEADS = ["L0H1", "L1H0", "L1H3", "L2H2"]
EVERY = [
    sh.UndifferentiatedAttention(),
    sh.UndifferentiatedAttention(1e-5),
    sh.UndifferentiatedAttention(1e-5, via="q"),
    sh.UndifferentiatedAttention(1e-5, via="k"),
    sh.ScalingContribution(),
    sh.ZeroAblation(),
    sh.MeanAblation(("how do i bend a kite", "explain how to mend a boat"), template="paper"),
    sh.MeanOverHeads("q"),
    sh.MeanOverHeads("k"),
    sh.MeanOverHeads("v"),
]


def identify(ablation):
    return "-".join(str(part) for part in ablation.describe().values())[:40]


def run(model, batch, hooks=()):
    with torch.no_grad():
        return model.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=list(hooks))


def real(batch):
    return batch.mask.bool()


def seen(model, batch, hooks, layer, site):
    """One activation of a run with hooks; the last hook on a point sees what the others did."""
    found = []
    name = f"blocks.{layer}.attn.hook_{site}"
    run(model, batch, [*hooks, (name, lambda tensor, hook: found.append(tensor.clone()))])
    return found[0]


@pytest.mark.parametrize("kind", ["undifferentiated", "scaling", "zero"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_the_plain_transformers_model(loaded, plain, prompts, name, kind):
    """Padded, several heads in several layers, against a second implementation."""
    model, reference = loaded(name), plain(name)
    batch = encode(model, prompts, "paper")
    heads = [sh.Head.parse(head) for head in HEADS]
    ours = run(model, batch, sh.ablation_hooks(model, heads, kind))[real(batch)]
    theirs = independent.logits(reference, batch.tokens, batch.mask, kind, heads)[real(batch)]
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    untouched = independent.logits(reference, batch.tokens, batch.mask)[real(batch)]
    assert (theirs - untouched).abs().max() > 0.05


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "pythia-parallel", "bloom-alibi"])
def test_z_goes_into_the_output_projection_and_a_slice_of_what_comes_out_is_no_head(
    loaded, plain, prompts, name
):
    model, reference = loaded(name), plain(name)
    batch = encode(model, prompts, "paper")
    modules = reference.named_modules()
    projection = [module for key, module in modules if independent.OUTPUTS.search(key)][1]
    given = []

    def cut(module, args, output):
        given.append(args[0])
        return torch.cat([output[..., :16], 0 * output[..., 16:24], output[..., 24:]], -1)

    handle = projection.register_forward_hook(cut)
    sliced = independent.logits(reference, batch.tokens, batch.mask)[real(batch)]
    handle.remove()
    z = seen(model, batch, [], 1, "z").flatten(-2)
    assert torch.allclose(z[real(batch)], given[0][real(batch)], atol=1e-5)
    ablated = run(model, batch, sh.ablation_hooks(model, "L1H2", "zero"))[real(batch)]
    assert (ablated - sliced).abs().max() > 0.05


def test_the_pattern_is_the_matrix_a(demo):
    batch = encode(demo, ["explain how to bend a kite"], "chat")
    length = batch.tokens.shape[1]
    pattern = seen(demo, batch, sh.ablation_hooks(demo, "L1H3"), 1, "pattern")[0]
    expected = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    assert torch.allclose(pattern[3], expected)
    assert not torch.allclose(pattern[2], expected, atol=0.1)


def test_a_is_uniform_over_visible_keys_only(loaded, prompts):
    """Left padding, and a sliding window of 5."""
    model = loaded("mistral-sliding")
    batch = encode(model, prompts, "paper")
    pattern = seen(model, batch, sh.ablation_hooks(model, ["L1H2"]), 1, "pattern")[:, 2]
    for row, mask in zip(pattern, batch.mask.bool(), strict=True):
        for query in range(len(mask)):
            keys = torch.zeros(len(mask))
            keys[max(0, query - 4) : query + 1] = 1
            keys *= mask
            expected = keys / keys.sum() if keys.any() else keys
            assert torch.allclose(row[query], expected)


@pytest.mark.parametrize("via", ["pattern", "q", "k"])
@pytest.mark.parametrize("name", ["llama", "qwen3-qk-norm", "qwen2-biases"])
def test_epsilon_tends_to_the_exact_limit(loaded, prompts, name, via):
    model = loaded(name)
    batch = encode(model, prompts, "paper")
    heads = ["L1H0", "L1H1"]  # one KV group
    exact = run(model, batch, sh.ablation_hooks(model, heads))[real(batch)]
    distances = [
        (run(model, batch, sh.ablation_hooks(model, heads, ablation))[real(batch)] - exact)
        .abs()
        .max()
        .item()
        for ablation in (sh.UndifferentiatedAttention(eps, via=via) for eps in (0.5, 1e-2, 1e-6))
    ]
    assert distances[0] > 5 * distances[1]
    assert distances[1] > 5 * distances[2]
    assert distances[2] < 1e-4


def edited(source, target, edit):
    """A copy of a checkpoint whose weights were changed by `edit(model)`."""
    plain = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        edit(plain.model.layers)
    shutil.copytree(source, target)
    plain.save_pretrained(target)
    return sh.load_model(target)


def head_rows(weight, head, n_heads):
    return weight.view(n_heads, -1, weight.shape[-1])[head]


@pytest.mark.parametrize(
    ("ablation", "projection"),
    [
        (sh.ScalingContribution(0.3), "v_proj"),
        (sh.UndifferentiatedAttention(0.3, via="q"), "q_proj"),
        (sh.UndifferentiatedAttention(0.3, via="k"), "k_proj"),
    ],
    ids=["SC-W_V", "UA-W_Q", "UA-W_K"],
)
def test_equal_to_scaled_weights_in_the_checkpoint(
    checkpoint, tmp_path, prompts, ablation, projection
):
    def edit(layers):
        for layer, head in ((0, 1), (1, 0), (1, 3)):
            weight = getattr(layers[layer].self_attn, projection).weight
            head_rows(weight, head, 4).mul_(0.3)

    source = checkpoint("llama")
    changed = edited(source, tmp_path / "edited", edit)
    model = sh.load_model(source)
    batch = encode(model, prompts, "paper")
    ours = run(model, batch, sh.ablation_hooks(model, ["L0H1", "L1H0", "L1H3"], ablation))
    assert torch.allclose(ours[real(batch)], run(changed, batch)[real(batch)], atol=1e-4)


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_mean_over_heads_equals_averaged_weights_or_outputs(checkpoint, tmp_path, prompts, which):
    """Averaging W_Q or W_K is averaging their outputs; for v it is the heads' outputs."""
    source = checkpoint("llama")
    model = sh.load_model(source)
    batch = encode(model, prompts, "paper")
    hooks = sh.ablation_hooks(model, ["L1H0", "L1H3"], sh.MeanOverHeads(which))
    if which == "v":
        z = seen(model, batch, [], 1, "z")
        expected = z.clone()
        expected[:, :, [0, 3]] = z.mean(2, keepdim=True)
        found = seen(model, batch, hooks, 1, "z")
        assert torch.allclose(found[real(batch)], expected[real(batch)], atol=1e-6)
        return

    def edit(layers):
        weight = getattr(layers[1].self_attn, f"{which}_proj").weight
        mean = weight.view(4, -1, 32).mean(0)
        head_rows(weight, 0, 4).copy_(mean)
        head_rows(weight, 3, 4).copy_(mean)

    changed = edited(source, tmp_path / "edited", edit)
    assert torch.allclose(
        run(model, batch, hooks)[real(batch)], run(changed, batch)[real(batch)], atol=1e-4
    )


def test_mean_ablation_is_the_mean_over_reference_tokens(demo, prompts):
    reference = ["how do i bend a kite", "please tell me how to mend a boat"]
    outputs = []
    for text in reference:
        outputs.append(seen(demo, encode(demo, [text], "chat"), [], 2, "z")[0, :, 6])
    expected = torch.cat(outputs).mean(0)
    batch = encode(demo, prompts, "chat")
    ablation = sh.MeanAblation(reference=reference, template="chat")
    z = seen(demo, batch, sh.ablation_hooks(demo, "L2H6", ablation), 2, "z")
    assert torch.allclose(z[:, :, 6], expected.expand_as(z[:, :, 6]), atol=1e-6)
    untouched = seen(demo, batch, [], 2, "z")
    assert torch.equal(z[:, :, :6], untouched[:, :, :6])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scaling_queries_keys_or_scores_is_the_same(loaded, prompts, name):
    model = loaded(name)
    batch = encode(model, prompts, "paper")
    by_pattern, by_query, by_key = (
        run(model, batch, sh.ablation_hooks(model, HEADS, sh.UndifferentiatedAttention(0.1, via)))
        for via in ("pattern", "q", "k")
    )
    kept = real(batch)
    assert not torch.allclose(by_query[kept], run(model, batch, [])[kept], atol=1e-3)
    assert torch.allclose(by_query[kept], by_key[kept], atol=1e-5)
    assert torch.allclose(by_query[kept], by_pattern[kept], atol=1e-5)


def test_keys_belong_to_a_group(loaded, prompts):
    model = loaded("llama-grouped")
    batch = encode(model, prompts, "paper")
    by_key = sh.UndifferentiatedAttention(1e-6, via="k")
    one, both = (
        run(model, batch, sh.ablation_hooks(model, heads, by_key))
        for heads in (["L1H2"], ["L1H2", "L1H3"])
    )
    assert torch.equal(one, both)
    by_pattern = run(model, batch, sh.ablation_hooks(model, ["L1H2", "L1H3"]))
    assert torch.allclose(one[real(batch)], by_pattern[real(batch)], atol=1e-4)


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "mistral-sliding", "pythia-parallel"])
@pytest.mark.parametrize("ablation", EVERY, ids=identify)
def test_generation_is_the_same_with_and_without_cache_and_one_by_one(
    checkpoint, prompts, name, ablation
):
    model = sh.load_model(checkpoint(name))
    model.tokenizer.eos_token_id = None  # random models stop too early
    batch = encode(model, prompts, "paper")
    with sh.ablated(model, HEADS, ablation):
        cached = generate_greedy(model, batch, 10)
        assert generate_greedy(model, batch, 10, use_cache=False) == cached
        assert [
            generate_greedy(model, encode(model, [prompt], "paper"), 10)[0] for prompt in prompts
        ] == cached
    assert generate_greedy(model, batch, 10) != cached


def test_transformer_lens_own_generate_is_the_same_too(demo, prompts):
    batch = encode(demo, prompts[:1], "chat")
    with sh.ablated(demo, ["L1H3", "L2H6"]):
        texts = [
            demo.generate(
                batch.tokens,
                max_new_tokens=9,
                do_sample=False,
                use_past_kv_cache=cache,
                verbose=False,
            )
            for cache in (True, False)
        ]
        ours = generate_greedy(demo, batch, 9)[0]
    assert torch.equal(*texts)
    assert demo.tokenizer.decode(texts[0][0, batch.tokens.shape[1] :]) == ours


@pytest.mark.parametrize("ablation", EVERY, ids=identify)
def test_hooks_are_gone_afterwards(demo, prompts, ablation):
    batch = encode(demo, prompts, "chat")
    before = run(demo, batch)
    with sh.ablated(demo, ["L1H3"], ablation):
        assert not torch.equal(run(demo, batch), before)
    with pytest.raises(KeyError), sh.ablated(demo, ["L1H3"], ablation):
        raise KeyError("the user's own mistake")
    sh.ships(demo, prompts, ablation=ablation, candidates=["L1H3"], run=QUIET)
    assert demo.list_hooks() == {}
    assert torch.equal(run(demo, batch), before)


def test_the_users_own_hooks_stay(demo, prompts):
    calls = []
    demo.add_hook("blocks.0.hook_resid_pre", lambda tensor, hook: calls.append(1))
    try:
        with sh.ablated(demo, "L1H3"):
            run(demo, encode(demo, prompts, "chat"))
        assert calls
        assert describe(demo)["hooks"] == ["blocks.0.hook_resid_pre"]
    finally:
        demo.reset_hooks()


def test_a_hook_that_did_not_fire_is_an_error(demo, prompts):
    silent = r"blocks\.1\.attn\.hook_z never fired"
    with pytest.raises(sh.SafeheadError, match=silent), sh.ablated(demo, ["L1H3"], "zero"):
        pass
    batch = encode(demo, prompts, "chat")
    silent = r"blocks\.3\.attn\.hook_z never fired"
    with pytest.raises(sh.SafeheadError, match=silent), sh.ablated(demo, ["L1H3", "L3H0"], "zero"):
        demo(batch.tokens, attention_mask=batch.mask, stop_at_layer=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sh.UndifferentiatedAttention(via="z"), "via='z'|Actual value: 'z'"),
        (lambda: sh.UndifferentiatedAttention(via="q"), "needs an epsilon"),
        (lambda: sh.UndifferentiatedAttention(0.0), "use epsilon=None"),
        (lambda: sh.UndifferentiatedAttention(-1.0), "not a positive number"),
        (lambda: sh.ScalingContribution(float("nan")), "not a number to scale by"),
        (lambda: sh.MeanOverHeads("z"), "which='z'|Actual value: 'z'"),
        (lambda: sh.MeanAblation(reference="a text"), "put a single prompt in brackets"),
    ],
)
def test_settings_that_mean_nothing(make, message):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=message):
        make()


def test_errors_of_ablation_hooks(demo):
    with pytest.raises(sh.SafeheadError, match="ablation 'unknown' is not known"):
        sh.ablation_hooks(demo, "L0H0", "unknown")
    with pytest.raises(sh.SafeheadError, match="L9H0 does not exist"):
        sh.ablation_hooks(demo, ["L9H0"])
    with pytest.raises(sh.SafeheadError, match="no heads"):
        sh.ablation_hooks(demo, [])
    with pytest.raises(sh.SafeheadError, match="needs a reference set"):
        sh.ablation_hooks(demo, "L0H0", "mean")
    with pytest.raises(sh.SafeheadError, match="which template"):
        sh.ablation_hooks(demo, "L0H0", sh.MeanAblation(["how do i bend a kite"]))


def test_half_of_a_pair_of_hooks_is_an_error(demo, prompts):
    batch = encode(demo, prompts, "chat")
    with pytest.raises(sh.SafeheadError, match="hooked without its partner"):
        run(demo, batch, sh.ablation_hooks(demo, "L1H3")[1:])


@hooked_only
@pytest.mark.parametrize("name", ["zero", "scaling"])
def test_processed_weights_are_told(caplog, prompts, name):
    model = sh.load_model("demo")
    model.process_weights_()
    with caplog.at_level(logging.WARNING):
        scores = sh.ships(model, prompts, ablation=name, candidates=["L0H0"], run=QUIET)
    assert "weights were processed" in caplog.text
    assert scores.provenance.model["processed"] is True


@pytest.mark.parametrize("name", ["zero", "scaling"])
def test_a_bridge_in_compatibility_mode_is_told(caplog, prompts, name):
    """The mode folds value biases into the output bias, as processing does."""
    model = sh.load_model("demo", backend="bridge")
    model.enable_compatibility_mode()
    with caplog.at_level(logging.WARNING):
        sh.ablation_hooks(model, "L1H3", name)
    assert "weights were processed" in caplog.text


@pytest.mark.parametrize(
    ("name", "ablation"),
    [
        ("undifferentiated", sh.UndifferentiatedAttention()),
        ("UA", sh.UndifferentiatedAttention()),
        ("undifferentiated_attention", sh.UndifferentiatedAttention()),
        ("scaling", sh.ScalingContribution(1e-5)),
        ("sc", sh.ScalingContribution(1e-5)),
        ("zero", sh.ZeroAblation()),
        ("mean-over-heads", sh.MeanOverHeads("q")),
    ],
)
def test_short_names(demo, prompts, name, ablation):
    batch = encode(demo, prompts, "chat")
    by_name, by_object = (
        run(demo, batch, sh.ablation_hooks(demo, ["L1H3"], which)) for which in (name, ablation)
    )
    assert torch.equal(by_name, by_object)


@pytest.mark.parametrize("backend", [pytest.param("hooked", marks=hooked_only), "bridge"])
@pytest.mark.parametrize("heads", [1, 4])
def test_very_low_scores_in_float16_hide_no_key(tmp_path, backend, heads):
    path = make_checkpoint("qwen2-biases", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    attention, wide = model.model.layers[1].self_attn, 8 * heads
    with torch.no_grad():  # scores near -1,219, below what a float16 mask was once taken to be
        attention.q_proj.bias[:wide] = 20.8
        attention.k_proj.bias[:] = -20.8
    model.save_pretrained(path)
    model = sh.load_model(str(path), dtype="float16", backend=backend)
    batch = encode(model, ["how do i bend a kite", "how do i bend"], "direct")
    hooks = sh.ablation_hooks(model, ["L1H2"])
    assert seen(model, batch, [], 1, "attn_scores")[0, 0, -1].min() < -1023.5
    pattern = seen(model, batch, hooks, 1, "pattern")[:, 2]
    for row, mask in zip(pattern, batch.mask, strict=True):
        even = torch.tril(torch.ones(int(mask.sum()), int(mask.sum())))
        own = row[mask.bool()][:, mask.bool()].float()
        torch.testing.assert_close(own, even / even.sum(1, keepdim=True), atol=1e-3, rtol=0)


def test_a_real_query_that_sees_no_key_is_refused(demo):
    scores = torch.full((1, 2, 3, 3), -torch.inf).tril()
    scores[..., 1, :] = -torch.inf  # the second of three tokens, which the third one sees
    (_, look), _ = sh.ablation_hooks(demo, "L1H0")
    with pytest.raises(sh.SafeheadError, match="do not show which keys"):
        look(scores, hook=None)

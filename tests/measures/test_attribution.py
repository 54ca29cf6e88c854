"""Direct attribution, against weights and states of the plain Transformers model."""

import functools
import itertools
import json

import pytest
import torch
import transformers

import independent
import safehead_tl as sh
from families import FAMILIES, GOLDEN, QUIET, HookedTransformer, hooked_only
from safehead_tl.models import gradient_with_norm_held, unembedded
from safehead_tl.models.writes import back_through_norm, through_norm
from safehead_tl.prompts import encode
from safehead_tl.scan import Search
from safehead_tl.views.inspection import Views

TOLD = {"template": "paper", "run": QUIET}
OPENINGS = sh.Openings((5, 9), (7, 11, 12))


@pytest.fixture(scope="module")
def bridged(checkpoint):
    """Loads a checkpoint as a bridge once."""
    return functools.cache(lambda name: sh.load_model(checkpoint(name), backend="bridge"))


def held(norm, states):
    """A Transformers norm as a linear map, its scale that of these states; and its bias."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    weight = torch.ones(states.shape[-1]) if weight is None else weight.detach()
    if "Gemma" in type(norm).__name__:
        weight = 1 + weight
    eps = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)),
               1e-5)  # fmt: skip

    def centred(x):
        return x if "RMS" in type(norm).__name__ else x - x.mean(-1, keepdim=True)

    scale = (centred(states).square().mean(-1, keepdim=True) + eps).sqrt()
    bias = torch.zeros(len(weight)) if bias is None else bias.detach()
    return (lambda x: weight * centred(x) / scale), bias


class Plain:
    """What a Transformers model writes at the last token, by hand."""

    def __init__(self, model, tokens, mask):
        self.model, config = model, model.config
        count = getattr(config, "num_attention_heads", None) or config.n_head
        layers = getattr(config, "num_hidden_layers", None) or config.n_layer
        blocks = next(
            module
            for module in model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == layers
        )
        seen = {}

        def keep(key):
            def hook(module, args, kwargs, output):
                given = args[0] if args else kwargs["hidden_states"]
                out = output[0] if isinstance(output, tuple) else output
                seen[key] = given.detach()[:, -1], out.detach()[:, -1]

            return hook

        handles = []
        for name, module in model.named_modules():
            if independent.OUTPUTS.search(name):
                number = sum(isinstance(key, tuple) and key[0] == "o" for key in seen)
                seen["o", number] = module
                handles.append(module.register_forward_hook(keep(("z", number)), with_kwargs=True))
        for number, block in enumerate(blocks):
            handles.append(block.register_forward_hook(keep(("block", number)), with_kwargs=True))
            norm = getattr(block, "post_attention_layernorm", None)
            if config.model_type in ("gemma2", "gemma3_text", "olmo2"):
                seen["norm", number] = norm
                handles.append(
                    norm.register_forward_hook(keep(("normed", number)), with_kwargs=True)
                )
        independent.logits(model, tokens, mask)
        for handle in handles:
            handle.remove()
        factor = getattr(config, "residual_multiplier", 1.0)
        self.embedding, self.last = seen["block", 0][0], seen["block", layers - 1][1]
        self.heads, self.biases, self.mlps = [], [], []
        for layer in range(layers):
            module, (z, _) = seen["o", layer], seen["z", layer]
            weight = module.weight.detach()
            weight = weight.T if isinstance(module, torch.nn.Linear) else weight  # GPT-2's is not
            weight = weight.unflatten(0, (count, -1))
            each = torch.einsum("phd,hdm->phm", z.unflatten(-1, (count, -1)), weight)
            bias = torch.zeros(len(z), weight.shape[-1])
            if module.bias is not None:
                bias += module.bias.detach()
            if ("norm", layer) in seen:
                norm, more = held(seen["norm", layer], seen["normed", layer][0])
                each = torch.stack([norm(one) for one in each.unbind(1)], 1)
                bias = norm(bias) + more
            each, bias = factor * each, factor * bias
            before, after = seen["block", layer]
            self.heads.append(each)
            self.biases.append(bias)
            self.mlps.append(after - before - each.sum(1) - bias)

    @property
    def norm(self):
        return next(
            module
            for name, module in self.model.base_model.named_children()
            if name in ("norm", "ln_f", "final_layernorm", "final_layer_norm")
        )

    def unembed(self, states):
        config = self.model.config
        logits = self.model.get_output_embeddings()(states)
        logits = logits / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def slope(self, openings):
        """The gradient of the log-odds, with the final norm's scale held."""
        at = self.last.clone().requires_grad_()
        linear, bias = held(self.norm, self.last)
        logits = self.unembed(linear(at) + bias)
        odds = [
            logits[:, list(ids)].logsumexp(-1) for ids in (openings.refusal, openings.compliance)
        ]
        return torch.autograd.grad((odds[0] - odds[1]).sum(), at)[0]


def check(model, original, prompts, direction, directions=None):
    """Every part against the plain model's; and that all add up."""
    batch = encode(model, prompts, "paper")
    plain = Plain(original, batch.tokens, batch.mask)
    if directions is None:
        directions = plain.slope(direction)
    found = sh.direct_attribution(model, prompts, direction, **TOLD)

    def on(states):
        return (states.double() * directions.double()).sum(-1)

    most = torch.stack([on(plain.embedding), *map(on, plain.mlps)]).abs().max()
    for layer, (each, biases, mlp) in enumerate(
        zip(plain.heads, plain.biases, plain.mlps, strict=True)
    ):
        heads = (each.double() * directions[:, None].double()).sum(-1)
        most = torch.maximum(most, heads.abs().max())
        atol = 1e-5 * most
        assert torch.allclose(found.heads.per_prompt[:, layer], heads, rtol=1e-4, atol=atol)
        assert torch.allclose(found.biases[:, layer], on(biases), rtol=1e-4, atol=atol)
        assert torch.allclose(found.mlps[:, layer], on(mlp), rtol=1e-4, atol=atol)
    assert torch.allclose(found.embedding, on(plain.embedding), rtol=1e-4, atol=atol)
    assert torch.allclose(found.whole, on(plain.last), rtol=1e-4, atol=atol)
    total = found.heads.per_prompt.sum((1, 2)) + found.rest
    assert torch.allclose(total, found.whole, rtol=1e-4, atol=atol)
    return found


def check_promoted(model, original, prompts):
    """Each head's own output through the unembedding, the final norm's scale held."""
    views = Views.of(model, prompts, "paper")
    plain = Plain(original, views.batch.tokens, views.batch.mask)
    linear, bias = held(plain.norm, plain.last)
    size = range(model.cfg.n_layers), range(model.cfg.n_heads)
    heads = [sh.Head(*each) for each in itertools.product(*size)]
    nothing = plain.unembed(torch.zeros_like(bias))
    for number in range(len(prompts)):
        seen = views.look(number, heads)
        assert torch.allclose(seen.state[0], plain.last[number], rtol=1e-3, atol=1e-4)
        parts = torch.cat([linear(each.transpose(0, 1))[:, number] for each in plain.heads])
        written = views.written(seen)
        atol = 1e-4 * float(parts.abs().max())
        assert torch.allclose(written, parts, rtol=1e-3, atol=atol)
        expected = (plain.unembed(parts) - nothing).detach().double()
        found = unembedded(model, written)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_heads_promote_is_what_the_weights_say(loaded, plain, prompts, family):
    check_promoted(loaded(family), plain(family), prompts[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_what_the_weights_say(loaded, plain, prompts, family):
    model = loaded(family)
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(2))
    unit = (vector / vector.norm()).expand(len(prompts), -1)
    found = check(model, plain(family), prompts, vector, unit)
    assert (found.heads.measure, found.heads.unit) == ("direct_attribution", "residual")
    found = check(model, plain(family), prompts, OPENINGS)
    assert (found.heads.measure, found.heads.unit) == ("direct_logit_attribution", "logits")


@hooked_only
@pytest.mark.parametrize("family", ["gpt2", "pythia-parallel", "bloom-alibi", "mixtral-experts"])
def test_bridges_too(bridged, plain, prompts, family):
    check(bridged(family), plain(family), prompts, OPENINGS)
    check_promoted(bridged(family), plain(family), prompts[:2])


@pytest.mark.parametrize("name", ["mha", "gqa"])
@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_golden_checkpoints(name, backend, prompts):
    plain = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name).eval()
    check(sh.load_model(GOLDEN / name, backend=backend), plain, prompts, OPENINGS)


def test_scaled_residuals(checkpoint, prompts, tmp_path):
    """Granite writes what attention and MLP put out times a factor, and scales its logits."""
    told = {"residual_multiplier": 0.22, "logits_scaling": 3.0, "embedding_multiplier": 2.0}
    config = transformers.GraniteConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=sh.load_model("demo").cfg.d_vocab,
        initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2, **told,
    )  # fmt: skip
    torch.manual_seed(0)
    original = transformers.GraniteForCausalLM(config).eval()
    original.save_pretrained(tmp_path / "granite")
    sh.organism.DEMO.tokenizer().save_pretrained(tmp_path / "granite")
    model = sh.load_model(tmp_path / "granite", backend="bridge")
    check(model, original, prompts, OPENINGS)
    check_promoted(model, original, prompts[:2])


@hooked_only
def test_a_hooked_transformer_with_norms_behind(demo, prompts):
    """Against its own cache and weights: the scale of the norm behind attention, held."""
    config = {
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 64, "d_mlp": 24,
        "d_vocab": demo.cfg.d_vocab, "act_fn": "relu", "normalization_type": "RMS", "seed": 1,
        "use_normalization_before_and_after": True, "output_logits_soft_cap": 4.0,
    }  # fmt: skip
    from transformer_lens import HookedTransformerConfig

    model = HookedTransformer(HookedTransformerConfig(**config), demo.tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    vector = torch.randn(16)
    found = sh.direct_attribution(model, prompts, vector, **TOLD)
    batch = encode(model, prompts, "paper")
    _, cache = model.run_with_cache(batch.tokens, attention_mask=batch.mask)
    unit = vector.double() / vector.double().norm()
    total = cache["blocks.0.hook_resid_pre"][:, -1].double() @ unit
    for layer in range(2):
        block = model.blocks[layer]
        each = torch.einsum("phd,hdm->phm", cache["z", layer][:, -1], block.attn.W_O)
        scale = cache[f"blocks.{layer}.ln1_post.hook_scale"][:, -1][:, None]
        each = each / scale * block.ln1_post.w
        heads = each.detach().double() @ unit
        assert torch.allclose(found.heads.per_prompt[:, layer], heads, rtol=1e-4, atol=1e-5)
        mlp = cache["mlp_out", layer][:, -1].double() @ unit
        assert torch.allclose(found.mlps[:, layer], mlp, rtol=1e-4, atol=1e-5)
        attention = cache["attn_out", layer][:, -1].double() @ unit
        assert torch.allclose(found.biases[:, layer], attention - heads.sum(1), atol=1e-4)
        total = total + attention + mlp
    parts = found.heads.per_prompt.sum((1, 2)) + found.rest
    assert torch.allclose(parts, total, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found.whole, total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_logits_are_taken_apart(harmful, backend):
    """With one opening on each side it is the log-odds themselves that are shared out."""
    model, prompts = sh.load_model("demo", backend=backend), harmful[:5]
    openings = sh.Openings((6,), (8,))
    found = sh.direct_attribution(model, prompts, openings, run=QUIET)
    batch = encode(model, prompts, "auto")
    with torch.no_grad():
        logits = model(batch.tokens, attention_mask=batch.mask)[:, -1].double()
    assert torch.allclose(found.whole, logits[:, 6] - logits[:, 8], rtol=1e-4)


@pytest.mark.parametrize("norm", [torch.nn.RMSNorm, torch.nn.LayerNorm])
def test_gradients_with_a_scale_held(norm):
    """Against the norm written out with its scale as a constant."""
    module, states = norm(12), 3 * torch.randn(4, 12) + 1
    with torch.no_grad():
        for weight in module.parameters():
            weight += torch.randn_like(weight)
    gradient = torch.randn(4, 12)
    centre = norm is torch.nn.LayerNorm
    about = states - states.mean(-1, keepdim=True) if centre else states
    scale = about.square().mean(-1, keepdim=True).sqrt()
    expected = module.weight.detach() * gradient / scale
    if centre:
        expected = expected - expected.mean(-1, keepdim=True)
    found = back_through_norm(module, states, gradient)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    part = gradient - gradient.mean(-1, keepdim=True) if centre else gradient
    through = through_norm(module, states, gradient)
    assert torch.allclose(through, module.weight.detach() * part / scale, rtol=1e-4, atol=1e-5)


def test_a_gradient_without_a_final_norm(demo):
    """What is read off states without a norm in between has the plain gradient."""
    states = torch.randn(3, demo.cfg.d_model)
    found = gradient_with_norm_held(demo, states, lambda at: (at**2).sum(-1))
    assert torch.allclose(found, 2 * states)


# The refusal direction


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_refusal_directions_are_differences_of_means(harmful, backend):
    model = sh.load_model("demo", backend=backend)
    kinds = harmful[:9], sh.load_prompts("demo/benign")[:6]
    for layer, site in ((1, "resid_pre"), (1, "resid_mid"), (2, "resid_post"), (3, "resid_post")):
        found = sh.refusal_direction(model, *kinds, layer=layer, site=site, run=QUIET)
        means = []
        for prompts in kinds:
            batch, seen = encode(model, prompts, "auto"), []
            hook = (f"blocks.{layer}.hook_{site}", lambda x, hook, seen=seen: seen.append(x))
            model.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=[hook])
            (state,) = seen
            state = state[0] if isinstance(state, tuple) else state
            means.append(state[:, -1].detach().double().mean(0))
        assert torch.allclose(found.vector, (means[0] - means[1]).float(), rtol=1e-4, atol=1e-5)
        few = sh.Run(max_bytes="3MB", max_rows=2, progress=False)
        again = sh.refusal_direction(model, *kinds, layer=layer, site=site, run=few)
        assert torch.allclose(found.vector, again.vector, atol=1e-5)


def test_a_direction_tells_where_it_came_from(demo, harmful, tmp_path):
    direction = sh.refusal_direction(demo, harmful[:9], "demo/benign", layer=2, run=QUIET)
    direction.save(tmp_path / "direction.safetensors")
    again = sh.RefusalDirection.load(tmp_path / "direction.safetensors")
    assert torch.equal(again.vector, direction.vector)
    assert (again.layer, again.site) == (2, "resid_pre")
    assert again.describe() == direction.describe()
    assert direction.describe()["harmful"] == 9
    assert "layer 2, resid_pre" in repr(direction)
    found = sh.direct_attribution(demo, harmful[:3], direction, run=QUIET)
    assert found.heads.provenance.settings["direction"] == direction.describe()
    title = found.heads.heatmap().layout.title.text
    assert "Direct attribution" in title
    assert "refusal direction of layer 2, resid_pre" in title
    assert "ablation" not in title
    # its length does not count
    other = sh.direct_attribution(demo, harmful[:3], 7 * direction.vector, run=QUIET)
    assert torch.allclose(other.heads.values, found.heads.values)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"layer": 4}, "layers 0 to 3"),
        ({"layer": -1}, "layer=-1"),
        ({"site": "z"}, "z"),
    ],
)
def test_places_that_are_not_there(demo, harmful, told, said):
    with pytest.raises(Exception, match=said):
        sh.refusal_direction(demo, harmful[:3], "demo/benign", run=QUIET, **{"layer": 0, **told})


def test_parallel_layers_have_no_middle(loaded, prompts):
    with pytest.raises(sh.SafeheadError, match="resid_mid"):
        sh.refusal_direction(
            loaded("pythia-parallel"), prompts, prompts[:2], layer=1, site="resid_mid", **TOLD
        )


def test_two_kinds_that_are_one(demo, harmful):
    with pytest.raises(sh.SafeheadError, match="same mean"):
        sh.refusal_direction(demo, harmful[:3], harmful[:3], layer=1, run=QUIET)


# Results and runs


def test_results_are_kept(demo, harmful, tmp_path):
    openings = sh.Openings.of_answers(demo, "demo/harmful", "demo/benign", run=QUIET)
    found = sh.direct_attribution(demo, harmful[:4], openings, run=QUIET)
    found.save(tmp_path / "direct.safetensors")
    again = sh.DirectAttribution.load(tmp_path / "direct.safetensors")
    assert torch.equal(again.heads.per_prompt, found.heads.per_prompt)
    for name in ("mlps", "biases", "embedding", "whole", "rest"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert found.heads.signed
    told = json.loads(json.dumps(found.to_dict()))
    parts = [head["score"] for head in told["heads"]]
    parts += [*told["mlps"], *told["biases"], told["embedding"]]
    assert sum(parts) == pytest.approx(told["whole"], rel=1e-4)
    table = found.to_frame()
    assert table["contribution"].sum() == pytest.approx(told["whole"], rel=1e-4)
    assert len(table) == 32 + 1 + 4 + 4
    assert "logits" in repr(found)


def test_memory_and_pieces(demo, harmful, tmp_path, monkeypatch):
    """Cut up, in a run directory, and read from it."""
    prompts = [*harmful[:19], "how do i lift a boat"]
    whole = sh.direct_attribution(demo, prompts, OPENINGS, run=QUIET)
    run = sh.Run(max_bytes="3MB", max_rows=3, run_dir=tmp_path / "run", progress=False)
    parts = sh.direct_attribution(demo, prompts, OPENINGS, run=run)
    assert torch.allclose(parts.heads.per_prompt, whole.heads.per_prompt, atol=1e-5)
    assert torch.allclose(parts.whole, whole.whole, rtol=1e-4)
    # one pass of each prompt
    assert whole.heads.provenance.forward_passes == pytest.approx(len(prompts), rel=0.01)

    def never(*told):
        raise AssertionError("the pieces were kept")

    monkeypatch.setattr("safehead_tl.scan.direct.record_writes", never)
    again = sh.direct_attribution(demo, prompts, OPENINGS, run=run)
    assert torch.equal(again.heads.per_prompt, parts.heads.per_prompt)
    with pytest.raises(sh.SafeheadError, match=r"settings\.direction"):
        sh.direct_attribution(demo, prompts, torch.ones(48), run=run)


def test_half_precision(harmful):
    """The stream is rounded at each layer there: parts add up to that."""
    found = sh.direct_attribution(
        sh.load_model("demo", dtype="bfloat16"), harmful[:4], OPENINGS, run=QUIET
    )
    exact = sh.direct_attribution(sh.load_model("demo"), harmful[:4], OPENINGS, run=QUIET)
    most = exact.heads.values.abs().max()
    assert (found.heads.values - exact.heads.values).abs().max() < 0.05 * most


def test_a_stream_that_something_else_writes_into_is_refused(demo, harmful):
    def more(state, hook):
        return state + 1.0

    with (
        demo.hooks([("blocks.2.hook_resid_post", more)]),
        pytest.raises(sh.SafeheadError, match="layer 2 changes the residual stream by more"),
    ):
        sh.direct_attribution(demo, harmful[:2], OPENINGS, run=QUIET)


@pytest.mark.parametrize("direction", [torch.ones(47), torch.zeros(48), torch.nan * torch.ones(48)])
def test_directions_that_are_none(demo, harmful, direction):
    with pytest.raises(sh.SafeheadError, match="direction"):
        sh.direct_attribution(demo, harmful[:2], direction, run=QUIET)


def hooks_of(model):
    """How many hooks there are; a bridge has some of its own."""
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]


def test_the_model_is_left_as_it_was(demo, harmful):
    before = {name: weight.requires_grad for name, weight in demo.named_parameters()}
    hooks = hooks_of(demo)
    sh.direct_attribution(demo, harmful[:2], OPENINGS, run=QUIET)
    assert before == {name: weight.requires_grad for name, weight in demo.named_parameters()}
    assert hooks_of(demo) == hooks
    Search.start(demo, harmful[:2], "auto", "zero", QUIET)

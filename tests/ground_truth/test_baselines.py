import pytest
import torch

import safehead_tl as sh
from families import QUIET, hooked_only, make_checkpoint
from safehead_tl.ground_truth.baselines import (
    RIDGE,
    SHARE,
    linear_probe,
    snip,
    wanda,
    weight_change,
)
from safehead_tl.prompts import encode

ARCHITECTURE = "llama-grouped"
NAMES = ("Q", "K", "V", "O")


@pytest.fixture(scope="module")
def texts():
    """Of unlike lengths, and more of one kind."""
    harmful = [
        "how do i bend a crobe",
        "please tell me how to mend a vosk",
        "explain how to lift a vosk",
    ]
    return harmful, [*sh.load_prompts("demo/benign")[:3], "how do i mend a boat"]


@pytest.fixture(scope="module")
def tiny(loaded):
    return loaded(ARCHITECTURE)


def recorded(model, texts):
    """Texts one by one, without padding: everything a pass has at the last token."""
    for text in texts:
        batch = encode(model, [text], "chat")
        yield model.run_with_cache(batch.tokens)[1]


def outputs(model, texts):
    layers = range(model.cfg.n_layers)
    found = [
        torch.stack([cache[f"blocks.{layer}.attn.hook_z"][0, -1] for layer in layers])
        for cache in recorded(model, texts)
    ]
    return torch.stack(found).double()


def test_the_probe_against_leaving_each_out(tiny, texts):
    found = linear_probe(tiny, *texts)
    z = torch.cat([outputs(tiny, some) for some in texts])
    y = torch.tensor([1.0] * 3 + [-1.0] * 4).double()
    for layer, head in [(0, 0), (1, 2), (2, 3)]:
        x = z[:, layer, head]
        penalty = torch.eye(9).double() * RIDGE * x.var(0, correction=0).mean() * 7
        penalty[-1, -1] = 0  # the intercept's
        x = torch.cat([x, torch.ones(7, 1)], 1)
        missed, alone = [], []
        for out in range(7):
            others = [each for each in range(7) if each != out]
            gram = x[others].T @ x[others] + penalty
            missed.append(y[out] - x[out] @ torch.linalg.solve(gram, x[others].T @ y[others]))
            alone.append(y[out] - y[others].mean())
        share = 1 - torch.stack(missed).square().sum() / torch.stack(alone).square().sum()
        torch.testing.assert_close(found[layer, head], share, rtol=1e-4, atol=1e-6)


def test_the_probe_of_what_is_known(demo, texts, monkeypatch):
    """Of outputs that say the label, and of outputs that say nothing."""
    outputs = torch.zeros(2, 7, 2, 1)
    outputs[0, :, 0, 0] = torch.tensor([5.0] * 3 + [3.0] * 4)
    split = {id(texts[0]): slice(0, 3), id(texts[1]): slice(3, 7)}
    monkeypatch.setattr(
        "safehead_tl.ground_truth.baselines._at_the_end",
        lambda model, some, name: [*outputs[:, split[id(some)]]],
    )
    found = linear_probe(demo, *texts)
    assert found[0, 0] > 0.99
    assert found[0, 1] == found[1, 0] == pytest.approx(0)


def by_head(model, scores):
    """The set difference, as a set of a matrix's places; `scores` by matrix and layer."""
    config = model.cfg
    found = torch.zeros(config.n_layers, config.n_heads)
    for layer in range(config.n_layers):
        size = 0
        for name in NAMES:
            tops = []
            for kind in ("safety", "utility"):
                flat = scores[kind, layer, name].flatten()
                tops.append({*flat.topk(int(SHARE * len(flat))).indices.tolist()})
            shape = scores["safety", layer, name].shape
            group = config.n_heads // shape[0]
            size += shape[1] * shape[2]
            for place in tops[0] - tops[1]:
                first = place // (shape[1] * shape[2]) * group
                found[layer, first : first + group] += 1
        found[layer] /= size
    return found.double()


def weights_of(model, layer):
    parts = dict(model.blocks[layer].attn.named_parameters())
    return {name: parts.get(f"_W_{name}", parts.get(f"W_{name}")) for name in NAMES}


@hooked_only
def test_wanda_by_hand(tiny, texts):
    scores = {}
    for kind, some in zip(("safety", "utility"), texts, strict=True):
        caches = list(recorded(tiny, some))
        for layer in range(3):
            norm = tiny.blocks[layer].ln1
            normed = [cache[f"blocks.{layer}.ln1.hook_normalized"][0, -1] for cache in caches]
            x = (torch.stack(normed) * norm.w).square().sum(0).sqrt()
            z = torch.stack([cache[f"blocks.{layer}.attn.hook_z"][0, -1] for cache in caches])
            for name, weight in weights_of(tiny, layer).items():
                size = z.square().sum(0).sqrt()[:, :, None] if name == "O" else x[None, :, None]
                scores[kind, layer, name] = weight.abs() * size
    expected = by_head(tiny, scores)
    found = wanda(tiny, *texts)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert found[0, 0] != found[2].sum() > 0


@hooked_only
def test_snip_by_hand(checkpoint, texts):
    model, scores = sh.load_model(checkpoint(ARCHITECTURE)), {}
    for kind, some in zip(("safety", "utility"), texts, strict=True):
        for layer in range(3):
            for name, weight in weights_of(model, layer).items():
                weight.requires_grad_()
                scores[kind, layer, name] = torch.zeros_like(weight)
        for text in some:
            model.zero_grad()
            logits = model(encode(model, [text], "chat").tokens)[0, -1].double()
            (-logits.log_softmax(-1)[logits.argmax()]).backward()
            for layer in range(3):
                for name, weight in weights_of(model, layer).items():
                    scores[kind, layer, name] += (weight * weight.grad).abs().detach() / len(some)
    expected = by_head(model, scores)
    for layer in range(3):
        for weight in weights_of(model, layer).values():
            weight.requires_grad_(False)
    found = snip(model, *texts)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert (found > 0).sum() > 6


@hooked_only
@pytest.mark.parametrize("name", ["qwen2-biases", "gpt2", "bloom-alibi", "phi3-joint-qkv"])
def test_a_bridge_has_the_same(checkpoint, loaded, texts, name):
    bridge, hooked = sh.load_model(checkpoint(name), backend="bridge"), loaded(name)
    for score in (linear_probe, wanda, snip):
        torch.testing.assert_close(
            score(bridge, *texts), score(hooked, *texts), rtol=1e-3, atol=2e-3
        )
    assert not weight_change(bridge, *texts, base=hooked).any()


@hooked_only
def test_weight_change_in_closed_form(checkpoint, tmp_path, texts):
    model, base = (sh.load_model(checkpoint(ARCHITECTURE)) for _ in range(2))
    scaled = weights_of(model, 1)
    with torch.no_grad():
        scaled["Q"][2] *= 3
        scaled["V"][0] *= 0.5
    before = {name: weight.double() for name, weight in weights_of(base, 1).items()}

    def squares(head, group):
        return {
            name: weight[group if name in "KV" else head].square().sum()
            for name, weight in before.items()
        }

    expected = torch.zeros(3, 4).double()
    for head in range(4):
        parts = squares(head, head // 2)
        changed = 4 * parts["Q"] * (head == 2) + 0.25 * parts["V"] * (head < 2)
        expected[1, head] = (changed / sum(parts.values())).sqrt()
    torch.testing.assert_close(weight_change(model, *texts, base=base), expected)
    other = sh.load_model(make_checkpoint("gpt2", tmp_path))
    with pytest.raises(sh.SafeheadError, match="differ in size"):
        weight_change(model, *texts, base=other)


def test_weights_changed_in_the_planted_heads_alone(demo, texts):
    found = weight_change(demo, *texts, base=sh.load_model("demo-base"))
    assert {tuple(place) for place in found.nonzero().tolist()} == {(1, 3), (2, 6)}


def test_nothing_stays_on_the_model(tiny, texts):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.modules())

    before = sh.ships(tiny, texts[0], template="chat", run=QUIET).provenance
    there, learning = hooks(), [weight.requires_grad for weight in tiny.parameters()]
    for score in (linear_probe, wanda, snip):
        score(tiny, *texts)
    assert hooks() == there
    assert sh.ships(tiny, texts[0], template="chat", run=QUIET).provenance.model == before.model
    assert [weight.requires_grad for weight in tiny.parameters()] == learning

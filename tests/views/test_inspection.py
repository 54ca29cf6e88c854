import pytest
import torch
from transformers import AutoTokenizer

import safehead_tl as sh
from families import GOLDEN, QUIET, HookedTransformer
from safehead_tl.models import all_logits, hooked
from safehead_tl.prompts import encode
from safehead_tl.views.inspection import Views, log_probs, shown_token, shrunk

HEADS = (sh.Head(1, 3), sh.Head(2, 6), sh.Head(0, 4))
ABLATIONS = {
    "undifferentiated": "undifferentiated",
    "scaled-q": sh.UndifferentiatedAttention(0.3, "q"),
    "scaled-k": sh.UndifferentiatedAttention(0.3, "k"),
    "zero": "zero",
    "mean": "mean",
    "mean-over-heads": "mean-over-heads",
}


def by_hand(model, tokens, group, ablation, layer):
    """A layer's patterns in a whole pass with heads ablated."""
    seen = {}
    hooks = sh.ablation_hooks(model, group, ablation) if group else []
    name = f"blocks.{layer}.attn.hook_pattern"
    hooks = [*hooks, (name, lambda pattern, hook: seen.update(found=pattern[0].clone()))]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return seen["found"]


@pytest.fixture(params=["auto", "bridge"])
def model(request):
    return sh.load_model("demo", backend=request.param)


@pytest.mark.parametrize("name", ABLATIONS)
def test_patterns_are_those_of_whole_passes(model, prompts, name):
    views = Views.of(model, prompts, "chat", ABLATIONS[name])
    assert views.ablation.keeps_patterns == (name in ("zero", "mean"))
    seen = views.look(1, HEADS)
    ablated = views.ablated_patterns(1, seen)
    tokens = views.batch.tokens[1][views.batch.mask[1].bool()][None]
    mean = {"mean": sh.MeanAblation(prompts, "chat")}
    ablation = mean.get(name, ABLATIONS[name])
    for head in HEADS:
        own = by_hand(model, tokens, (), ablation, head.layer)
        assert torch.allclose(seen.patterns[head], own[head.head], atol=1e-5)
        assert torch.allclose(seen.last_rows[head.layer], own[:, -1], atol=1e-5)
        alone = by_hand(model, tokens, (head,), ablation, head.layer)
        assert torch.allclose(ablated[head], alone[head.head], atol=1e-5)
    group = (sh.Head(0, 4), sh.Head(1, 3))
    both = views.patterns_with(1, HEADS, group)
    for head, pattern in zip(HEADS, both, strict=True):
        expected = by_hand(model, tokens, group, ablation, head.layer)[head.head]
        assert torch.allclose(pattern, expected, atol=1e-5)


def test_a_grouped_models_keys(checkpoint, prompts):
    model = sh.load_model(checkpoint("llama-grouped"))
    ablation = sh.UndifferentiatedAttention(0.3, "k")
    views = Views.of(model, prompts, "paper", ablation)
    tokens = views.batch.tokens[2][views.batch.mask[2].bool()][None]
    heads = (sh.Head(2, 1), sh.Head(1, 0), sh.Head(1, 3))
    found = views.ablated_patterns(2, views.look(2, heads))
    assert tuple(found) == heads
    for head in heads:
        expected = by_hand(model, tokens, (head,), ablation, head.layer)[head.head]
        assert torch.allclose(found[head], expected, atol=1e-5)


def test_next_tokens_and_answers_are_those_of_ablated(model, prompts):
    views = Views.of(model, prompts, "chat")
    groups = [(), (sh.Head(1, 3),), (sh.Head(1, 3), sh.Head(2, 6))]
    alone = views.alone([sh.Head(2, 6), sh.Head(1, 3)])
    for prompt in range(3):
        tokens = views.batch.tokens[prompt][views.batch.mask[prompt].bool()][None]

        def expected(group, tokens=tokens):
            hooks = sh.ablation_hooks(model, group) if group else []
            with torch.no_grad():
                logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
            return logits[0, -1].log_softmax(-1).double()

        for group in groups:
            states = views.look(prompt, HEADS, group).state
            assert torch.allclose(log_probs(model, states)[0], expected(group), atol=1e-4)
        for states, head in zip(alone, (sh.Head(2, 6), sh.Head(1, 3)), strict=True):
            assert torch.allclose(log_probs(model, states)[prompt], expected(head), atol=1e-4)
    told = {"template": "chat", "max_new_tokens": 20, "run": QUIET}
    for group, texts in zip(groups, views.answers(groups, 20), strict=True):
        assert [(text,) for text in texts] == list(sh.generate(model, prompts, group, **told).texts)


def test_tokens_can_be_read():
    golden = AutoTokenizer.from_pretrained(GOLDEN / "mha")
    ids = golden("a b\n\té<x>", add_special_tokens=False)["input_ids"]
    shown = [shown_token(golden, token) for token in ids]
    assert "".join(shown[:3]) == "a·b"
    assert "⏎" in shown
    assert "⇥" in shown
    assert all(text.strip() == text and text.isprintable() for text in shown)
    assert shown_token(golden, golden.bos_token_id) == "<s>"


def test_words_of_the_demo(demo, prompts):
    views = Views.of(demo, prompts, "chat")
    assert views.tokens(0)[:4] == ["<s>", "##", "query", ":"]
    assert (HookedTransformer is None) or type(demo) is HookedTransformer


@pytest.mark.parametrize("length", [5, 16, 32, 41])
def test_patterns_made_small(length):
    """Against each cell's mean over a fine grid that sixteenths and tokens both divide."""
    pattern = torch.rand(2, length, length).tril()
    fine = pattern.repeat_interleave(16, 1).repeat_interleave(16, 2)
    cells = fine.unflatten(2, (16, length)).unflatten(1, (16, length)).mean((2, 4))
    expected = torch.stack(
        [cells[:, row, column] for row in range(16) for column in range(row + 1)]
    )
    assert torch.allclose(shrunk(pattern), expected.T, atol=1e-6)


def test_a_resampled_prompt_keeps_its_place(model, prompts):
    """Its ablation is of given prompts: the second one's is looked at without the others."""
    ablation = sh.ResampleAblation(["how do i lift a kite"], "mean")
    views = Views.of(model, prompts, "chat", ablation, shown=2)
    assert views.batch.prompts == tuple(prompts[:2])
    head = sh.Head(1, 3)
    seen = views.look(1, [head], (head,))
    batch = encode(model, prompts, "chat")
    hooks = views.ablation.on(torch.arange(3)).hooks(model, 1, torch.arange(8)[None] == 3)
    state = {}
    keep = ("blocks.3.hook_resid_post", lambda resid, hook: state.update(last=resid[:, -1]))
    with torch.no_grad(), hooked(model, [*hooks, keep]):
        all_logits(model, batch.tokens, batch.mask)
    assert torch.allclose(seen.state[0], state["last"][1], atol=1e-4)
    assert torch.allclose(views.alone([head])[0, 1], state["last"][1], atol=1e-4)

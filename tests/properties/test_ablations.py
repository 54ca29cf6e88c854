"""Hooks do what weights do and what a second computation says, under any padding; or nothing."""

import copy

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

import independent
import safehead_tl as sh
from families import QUIET
from safehead_tl.models import all_logits, dissect
from safehead_tl.prompts import PromptBatch
from safehead_tl.surgery.weights import ablate_weights
from strategies import ABLATIONS, EVERY_HEAD, kinds, memory, prompts, tried

VOCABULARY = 82  # of the organism's tokenizer, which the checkpoints have
SECOND = {
    "undifferentiated": sh.UndifferentiatedAttention(),
    "scaling": sh.ScalingContribution(),
    "zero": sh.ZeroAblation(),
    "mean": sh.MeanAblation(),
}
GROUPS = st.lists(st.sampled_from(EVERY_HEAD), unique=True, min_size=1, max_size=5)


ROWS = st.tuples(
    st.lists(st.integers(1, 14), min_size=1, max_size=4), st.integers(0, 6), st.integers(0, 2**16)
)
"""Lengths of rows, columns beyond the longest, and a seed of all tokens, padding's too."""


def made(lengths, beyond, seed):
    """Rows padded at the left, by more than they need."""
    width = max(lengths) + beyond
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (len(lengths), width), generator=drawn)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return PromptBatch(tuple(map(str, lengths)), "direct", tokens, mask)


def agree(ours, theirs, batch, **tolerance):
    real = batch.mask.bool()
    return torch.allclose(ours[real].log_softmax(-1), theirs[real].log_softmax(-1), **tolerance)


@torch.no_grad()
def hooked(model, batch, hooks=()):
    with model.hooks(fwd_hooks=list(hooks)):
        return all_logits(model, batch.tokens, batch.mask)


@pytest.mark.parametrize("name", SECOND)
@given(kind=kinds(), group=GROUPS, rows=ROWS)
def test_hooks_do_what_weights_do_and_a_second_computation(opened, plain, kind, name, group, rows):
    model, original, batch = opened(*kind), plain(kind[0]), made(*rows)
    heads, prepared = tuple(map(sh.Head._make, group)), SECOND[name].prepare(model, batch)
    ours = hooked(model, batch, sh.ablation_hooks(model, heads, prepared))
    if name == "mean":
        theirs = independent.logits_with_means(original, batch.tokens, batch.mask, heads)
    else:
        theirs = independent.logits(original, batch.tokens, batch.mask, name, heads)
    assert agree(ours, theirs, batch, atol=1e-4)
    written = copy.deepcopy(original)
    _, refused = tried(lambda: ablate_weights(written, dissect(written), heads, prepared))
    if refused:
        event(f"not in weights: {refused}")
    else:
        assert agree(independent.logits(written, batch.tokens, batch.mask), ours, batch, atol=1e-4)


@given(
    kind=kinds(),
    ablation=st.sampled_from(ABLATIONS),
    layer=st.integers(0, 2),
    rows=ROWS,
    seed=st.integers(0, 2**16),
)
def test_each_row_has_its_own_heads_ablated_and_no_others(
    opened, kind, ablation, layer, rows, seed
):
    model, batch = opened(*kind), made(*rows)
    drawn = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(batch.prompts), 4, generator=drawn) < 0.3
    prepared = ablation.prepare(model, batch)
    together, refused = tried(lambda: hooked(model, batch, prepared.hooks(model, layer, chosen)))
    if refused:
        event(f"refused: {refused}")
        return
    before = hooked(model, batch)
    for row, own in enumerate(chosen):
        alone = hooked(model, batch, prepared.hooks(model, layer, own[None]))
        expected = alone if own.any() else before
        assert torch.equal(alone, before) or own.any()
        real = batch.mask[row].bool()
        assert torch.allclose(together[row, real], expected[row, real], atol=1e-4)
    assert torch.equal(hooked(model, batch), before)


@given(kind=kinds(), some=prompts(), rows=st.integers(1, 20))
def test_a_head_scaled_by_one_scores_nothing(opened, kind, some, rows):
    how = sh.Run(max_rows=rows, progress=False)
    scores = sh.ships(opened(*kind), some, ablation=sh.ScalingContribution(1.0), run=how)
    assert scores.values.abs().max() < 1e-9


@given(kind=kinds(), some=prompts(), group=GROUPS | st.just([]), how=memory())
def test_texts_do_not_depend_on_company(opened, kind, some, group, how):
    model = opened(*kind)
    told = {"template": "paper", "max_new_tokens": 5}
    together, refused = tried(lambda: sh.generate(model, some, group, run=how, **told))
    if refused:
        assert "is too little" in refused
        return
    alone = [sh.generate(model, [prompt], group, run=QUIET, **told) for prompt in some]
    assert together.texts == tuple(each.texts[0] for each in alone)

"""Outputs from other prompts, against the same by hand with a cache."""

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET
from safehead_tl.prompts import encode

OTHERS = ["fold a tent", "how do i bend a drum", "please tell me how to lift a boat"]


def by_hand(model, batch, layer, head, given):
    """Log-probabilities at the end, with a head's output replaced where something is given."""

    def put(z, hook):
        z = z.clone()
        for row, columns in enumerate(given):
            for column, value in columns.items():
                z[row, column, head] = value[layer][head]
        return z

    with torch.no_grad():
        logits = model.run_with_hooks(
            batch.tokens,
            attention_mask=batch.mask,
            fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put)],
        )
    return logits[:, -1].double().log_softmax(-1)


def outputs(model, batch):
    """For each prompt and column, every layer's outputs."""
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens, attention_mask=batch.mask)
    layers = [cache[f"blocks.{layer}.attn.hook_z"] for layer in range(model.cfg.n_layers)]
    return lambda row, column: [z[row, column] for z in layers]


def places(batch, row, others, other, before, after):
    """Columns of a prompt and those of another that stand at the same places."""
    length, theirs = int(batch.mask[row].sum()), int(others.mask[other].sum())
    query, counterpart = length - before - after, theirs - before - after
    shorter = min(query, counterpart)
    front = (shorter + 1) // 2
    back = shorter - front
    here = [*range(before + front), *range(length - after - back, length)]
    there = [*range(before + front), *range(theirs - after - back, theirs)]
    widths = batch.tokens.shape[1] - length, others.tokens.shape[1] - theirs
    return [(widths[0] + a, widths[1] + b) for a, b in zip(here, there, strict=True)]


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2"])
@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("draws", ["paired", "mean"])
def test_place_by_place(checkpoint, prompts, name, backend, draws):
    model = sh.load_model(checkpoint(name), backend=backend)
    template = "## {query} # # ## :"
    told = {"template": template, "ablation": sh.ResampleAblation(OTHERS, draws), "run": QUIET}
    found = sh.ships(model, prompts, **told).per_prompt
    batch, others = encode(model, prompts, template), encode(model, OTHERS, template)
    edges = template_edges(model, template)
    z, given = outputs(model, others), []
    for row in range(len(prompts)):
        sums: dict[int, list] = {}
        for other in [row] if draws == "paired" else range(len(OTHERS)):
            for here, there in places(batch, row, others, other, *edges):
                sums.setdefault(here, []).append(z(other, there))
        given.append(
            {
                column: [torch.stack(layer).mean(0) for layer in zip(*some, strict=True)]
                for column, some in sums.items()
            }
        )
    with torch.no_grad():
        before = model(batch.tokens, attention_mask=batch.mask)[:, -1].double().log_softmax(-1)
    for layer, head in [(0, 1), (1, 3), (2, 0)]:
        after = by_hand(model, batch, layer, head, given)
        expected = (before.exp() * (before - after)).sum(-1)
        assert torch.allclose(found[:, layer, head], expected, rtol=1e-4, atol=1e-5)
    assert found.max() > 1e-4


def template_edges(model, template):
    """Tokens in front of a query, with the BOS token, and behind it."""
    front, back = template.split("{query}")
    tokenizer = model.tokenizer
    counts = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (front, back)]
    return counts[0] + int(model.cfg.default_prepend_bos), counts[1]


def test_drawn_ones_are_others_and_the_same_each_time(demo, harmful):
    one, two, three = (
        sh.ships(demo, harmful[:4], ablation=sh.ResampleAblation(harmful[:6], seed=seed), run=QUIET)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.per_prompt, two.per_prompt)
    assert not torch.equal(one.per_prompt, three.per_prompt)
    assert one.provenance.ablation["label"] == "resample ablation"
    # a prompt is its own donor only where there is nothing else
    itself = sh.ResampleAblation(harmful[:4], "paired")
    assert sh.ships(demo, harmful[:4], ablation=itself, run=QUIET).values.max() < 1e-8


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_each_row_gets_its_own(demo, harmful, rows):
    """However prompts are cut up, on the way of a group, of screening and of last states."""
    paired = sh.ResampleAblation(sh.load_prompts("demo/benign")[:7], "paired")
    told = {"ablation": paired, "given": "L1H2", "run": sh.Run(max_rows=rows, progress=False)}
    found = sh.ships(demo, harmful[:7], screen="auto", **told)
    whole = sh.ships(demo, harmful[:7], **{**told, "run": QUIET})
    scored = ~found.values.isnan()
    assert torch.allclose(found.values[scored], whole.values[scored], atol=1e-5)
    assert found.screening.spearman > 0.5
    states = sh.last_states(demo, harmful[:7], "L1H3", ablation=paired, run=told["run"])
    other = sh.last_states(demo, harmful[:7], "L1H3", ablation=paired, run=QUIET)
    assert torch.allclose(states.ablated, other.ablated, atol=1e-4)


def test_not_where_texts_are_generated(demo, harmful):
    resample = sh.ResampleAblation("demo/benign")
    for call in (
        lambda: sh.evaluate(
            demo, harmful[:2], heads="L1H3", ablation=resample, controls=0, max_new_tokens=2
        ),
        lambda: sh.ablation_hooks(demo, "L1H3", resample),
    ):
        with pytest.raises(sh.SafeheadError, match="in given prompts"):
            call()
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="draws"):
        sh.ResampleAblation("demo/benign", "all")

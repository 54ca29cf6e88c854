"""Refusal log-odds and interchange, computed again on plain Transformers models."""

import itertools
import random

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM

import safehead_tl as sh
from families import GOLDEN, QUIET
from safehead_tl.prompts import encode
from safehead_tl.results import swapped_p

HARMFUL = ["how do i bend a crobe", "please tell me how to bend a flonk", "fold a glimp"]
HARMLESS = ["how do i bend a kite", "please tell me how to fold a drum", "fold a tent"]
UNEQUAL = ["how do i bend a kite", "explain how to fold a drum", "please fold a tent"]
OPENINGS = sh.Openings(refusal=(7, 11), compliance=(3, 20, 41))


class ByHand:
    """A plain Llama in which a head's output can be put in the place of its own."""

    def __init__(self, path):
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.size = self.model.config.head_dim
        self.shape = self.model.config.num_hidden_layers, self.model.config.num_attention_heads
        self.heads = list(itertools.product(*map(range, self.shape)))

    def run(self, tokens, replaced=()):
        """Logits at the end, and what each layer's heads put out."""
        outputs, hooks = [], []
        for layer, block in enumerate(self.model.model.layers):

            def hook(module, given, layer=layer):
                z = given[0].clone()
                for (where, head), (here, other) in replaced:
                    if where == layer:
                        own = slice(head * self.size, (head + 1) * self.size)
                        z[0, here, own] = other[layer][0][:, own]
                outputs.append(z)
                return (z,)

            hooks.append(block.self_attn.o_proj.register_forward_pre_hook(hook))
        with torch.no_grad():
            logits = self.model(tokens[None]).logits[0, -1].double()
        for hook in hooks:
            hook.remove()
        return logits, outputs

    def swapped(self, tokens, donor, columns, heads):
        """Logits with heads' outputs from another prompt: at `here` those at `there`."""
        here, there = columns
        _, outputs = self.run(donor)
        given = [z[:, there] for z in outputs]
        return self.run(tokens, [(head, (here, given)) for head in heads])[0]


def odds(logits):
    likely = logits.log_softmax(-1).exp()
    refusal, compliance = (
        likely[list(ids)].sum().log() for ids in (OPENINGS.refusal, OPENINGS.compliance)
    )
    return refusal - compliance


def kl(before, after):
    before, after = before.log_softmax(-1), after.log_softmax(-1)
    return (before.exp() * (before - after)).sum()


def rows(model, texts):
    batch = encode(model, texts, "paper")
    return [
        row[mask.bool()] for row, mask in zip(batch.tokens.cpu(), batch.mask.cpu(), strict=True)
    ]


@pytest.fixture(scope="module", params=["mha", "gqa"])
def golden(request):
    return request.param, ByHand(GOLDEN / request.param)


def both(name, call):
    """What a `HookedTransformer` and a bridge give."""
    return [call(sh.load_model(GOLDEN / name, backend=each)) for each in ("auto", "bridge")]


def test_log_odds_are_those_of_the_plain_model(golden):
    name, by_hand = golden
    told = {"template": "paper", "ablation": "zero", "run": QUIET}
    found = both(name, lambda model: sh.refusal_log_odds(model, HARMFUL, OPENINGS, **told))
    for number, tokens in enumerate(rows(sh.load_model(GOLDEN / name), HARMFUL)):
        here = list(range(len(tokens)))
        before = odds(by_hand.run(tokens)[0])
        nothing = [torch.zeros(1, len(here), 10_000)] * by_hand.shape[0]
        for head in by_hand.heads:
            fall = before - odds(by_hand.run(tokens, [(head, (here, nothing))])[0])
            for scores in found:
                assert torch.isclose(scores.per_prompt[number, *head], fall, rtol=1e-4, atol=2e-6)
    assert found[0].signed
    assert found[0].values.min() < 0 < found[0].values.max()


@pytest.mark.parametrize("others", [HARMLESS, UNEQUAL], ids=["equal", "unequal"])
def test_interchange_is_that_of_the_plain_model(golden, others):
    name, by_hand = golden
    model, pairs, group = sh.load_model(GOLDEN / name), (HARMFUL, others), [(0, 1), (1, 2)]
    logits = [[by_hand.run(tokens)[0] for tokens in rows(model, some)] for some in pairs]
    gap = torch.stack([odds(one) - odds(two) for one, two in zip(*logits, strict=True)])
    if gap.mean() <= 0:  # this random model refuses the others
        pairs, logits, gap = pairs[::-1], logits[::-1], -gap
    told = {"template": "paper", "openings": OPENINGS, "group": group, "run": QUIET}
    results = both(name, lambda model: sh.interchange(model, *pairs, **told))
    tokens = [rows(model, some) for some in pairs]
    together = [0.0, 0.0]
    for number, way in itertools.product(range(len(HARMFUL)), range(2)):
        own, other = tokens[way][number], tokens[1 - way][number]
        edges = [template_edges(model, some) for some in (pairs[way], pairs[1 - way])]
        columns = by_ends(len(own), len(other), *edges[0], *edges[1])
        before, sign = logits[way][number], 1 - 2 * way
        for head in by_hand.heads:
            after = by_hand.swapped(own, other, columns, [head])
            share = sign * (odds(before) - odds(after)) / gap.mean()
            for found in results:
                shares, kls = (
                    (found.necessity, found.necessity_kl),
                    (found.sufficiency, found.sufficiency_kl),
                )[way]
                assert torch.isclose(shares.per_prompt[number, *head], share, rtol=1e-4, atol=1e-5)
                assert torch.isclose(
                    kls.per_prompt[number, *head], kl(before, after), rtol=1e-4, atol=1e-6
                )
        after = by_hand.swapped(own, other, columns, group)
        together[way] += float(sign * (odds(before) - odds(after)) / gap.sum())
    for found in results:
        assert torch.allclose(found.gap, gap, rtol=1e-4, atol=1e-6)
        assert found.group_shares == pytest.approx(together, rel=1e-4, abs=1e-5)
        assert found.unequal == sum(len(one) != len(two) for one, two in zip(*tokens, strict=True))


def template_edges(model, texts):
    """How many tokens of the paper's template stand around a query."""
    tokenizer = model.tokenizer
    text = "## Query:{query}\n## Answer:".replace("{query}", texts[0])
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = text.index(texts[0])
    bos = int(model.cfg.default_prepend_bos)
    first = sum(end <= start for _, end in found["offset_mapping"]) + bos
    last = sum(begin >= start + len(texts[0]) for begin, _ in found["offset_mapping"])
    return first, last


def by_ends(own, other, first, last, their_first, their_last):
    """Places of two prompts that go together."""
    shorter = min(own - first - last, other - their_first - their_last)
    front, back = (shorter + 1) // 2, shorter // 2
    here = [*range(first + front), *range(own - last - back, own)]
    there = [*range(their_first + front), *range(other - their_last - back, other)]
    return here, there


@pytest.mark.parametrize("cut", [{"max_rows": 3}, {"max_rows": 1}, {"max_bytes": "3MiB"}], ids=str)
def test_however_it_is_cut_up(demo, harmful, cut):
    pairs = sh.pair_prompts(demo, harmful[:8], "demo/benign")
    whole = sh.interchange(demo, harmful[:8], pairs, run=QUIET)
    parts = sh.interchange(demo, harmful[:8], pairs, run=sh.Run(progress=False, **cut))
    for name in ("necessity", "sufficiency", "necessity_kl"):
        one, two = getattr(whole, name).per_prompt, getattr(parts, name).per_prompt
        assert torch.allclose(one, two, atol=1e-5)


def test_goes_on_where_it_was_and_is_kept(demo, harmful, tmp_path):
    pairs = sh.pair_prompts(demo, harmful, "demo/benign")
    run = sh.Run(progress=False, run_dir=tmp_path / "run")
    whole = sh.interchange(demo, harmful, pairs, group="L1H3", run=run)
    for lost in sorted((tmp_path / "run" / "necessity").glob("*L2H*"))[:2]:
        lost.unlink()
    again = sh.interchange(demo, harmful, pairs, group="L1H3", run=run)
    assert torch.equal(whole.necessity.per_prompt, again.necessity.per_prompt)
    whole.save(tmp_path / "swapped.safetensors")
    loaded = sh.Interchange.load(tmp_path / "swapped.safetensors")
    assert loaded.to_dict() == whole.to_dict()
    with pytest.raises(sh.SafeheadError, match="another run"):
        sh.interchange(demo, harmful, pairs[::-1], run=run)


def test_finds_the_planted_heads_where_the_template_ends(demo, harmful):
    pairs = sh.pair_prompts(demo, harmful, "demo/benign")
    found = {
        place: sh.interchange(demo, harmful, pairs, positions=place, run=QUIET)
        for place in ("all", "query", "last")
    }
    for place in ("all", "last"):
        for scores in (found[place].necessity, found[place].sufficiency):
            assert [str(head) for head, _ in scores.top(2)] == ["L1H3", "L2H6"]
    assert found["query"].necessity.values.max() < 0.1
    table = found["all"].to_frame().set_index("name")
    p_values = found["all"].p_values()
    assert table.loc["L1H3", "p_necessity"] == float(p_values[1, 3]) == p_values.min()
    assert "taken to open with 'sorry', compliance with" in found["all"].notes()[0]
    # by openings of their own the wrong way round is no error, but the words tell
    wrong = sh.interchange(demo, pairs, harmful, run=QUIET)
    assert "compliance with 'sorry'" in wrong.notes()[0]
    assert "pairs" in found["all"].notes()[1]
    assert len(found["all"].heatmap().data) >= 2


def test_a_small_p_is_not_of_refusal_where_pairs_differ_in_more(demo, harmful):
    """L0H4 reads the verb. Swapped in with another verb, it lowers help, and carries no refusal."""
    texts, pool = harmful[:30], sh.load_prompts("demo/benign")
    draw = random.Random(0)
    unlike = [
        draw.choice([other for other in pool if other.split()[-3] != text.split()[-3]])
        for text in texts
    ]
    found = sh.interchange(demo, texts, unlike, run=QUIET)
    assert found.p_values("sufficiency")[0, 4] < 0.001
    assert found.sufficiency["L0H4"] > 0.1 > abs(found.necessity["L0H4"])
    assert found.p_values("necessity")[0, 4] > 0.5


def test_p_values_hold_for_all_heads_at_once():
    """Labels that mean nothing: the lowest of 30 p-values is below 0.05 once in twenty."""
    draw = torch.Generator().manual_seed(0)
    times, found = 400, 0
    for _ in range(times):
        shared = torch.randn(10, 1, generator=draw, dtype=torch.float64)
        first, second = (
            torch.randn(10, 30, generator=draw, dtype=torch.float64).exp() + shared
            for _ in range(2)
        )
        turned = torch.rand(10, 1, generator=draw) < 0.5
        effects, swapped = first.where(turned, second), second.where(turned, first)
        found += int(swapped_p(effects, swapped, 10_000, 0).min() <= 0.05)
    assert 0.02 < found / times < 0.08


def test_p_values_are_not_of_damage():
    """A head that lowers the log-odds whichever way it is swapped carries no label."""
    effects = torch.full((10, 3), 0.01, dtype=torch.float64)
    swapped = effects.clone()
    effects[:, 0], swapped[:, 0] = 1.0, 1.0
    effects[:, 1], swapped[:, 1] = 0.5, -0.5
    damage, carrier, nothing = swapped_p(effects, swapped, 2000, 0)
    assert damage == 1
    assert carrier == 1  # it lies below the damage, whose highest any order reaches
    alone = swapped_p(effects[:, 1:], swapped[:, 1:], 2000, 0)
    assert alone[0] == pytest.approx(2**-10)
    assert nothing == 1


def test_bad_input_is_named(demo, harmful):
    pairs = sh.pair_prompts(demo, harmful, "demo/benign")
    with pytest.raises(sh.SafeheadError, match="counterparts: give each prompt its own"):
        sh.interchange(demo, harmful, pairs[:-1], run=QUIET)
    with pytest.raises(sh.SafeheadError, match="its own counterpart"):
        sh.interchange(demo, harmful, harmful, run=QUIET)
    openings = sh.Openings.of_answers(demo, harmful, pairs)
    with pytest.raises(sh.SafeheadError, match="no likelier refused"):
        sh.interchange(demo, pairs, harmful, openings=openings, run=QUIET)
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="positions"):
        sh.interchange(demo, harmful, pairs, positions="end", run=QUIET)
    with pytest.raises(sh.SafeheadError, match="open refusals and compliant answers alike"):
        sh.Openings((1, 2), (2, 3))
    with pytest.raises(sh.SafeheadError, match="beyond the model's vocabulary"):
        sh.refusal_log_odds(demo, harmful, sh.Openings((10**6,), (2,)), run=QUIET)
    with pytest.raises(sh.SafeheadError, match="does not know how 'xylophone'"):
        sh.Openings.of_texts(demo, ["sorry"], ["xylophone"])
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="openings"):
        sh.refusal_log_odds(demo, harmful, None, run=QUIET)


@pytest.mark.parametrize(
    ("name", "backend"), [("gemma2-soft-caps-windows", "bridge"), ("gpt2", "auto")]
)
def test_log_odds_with_all_that_follows_the_unembedding(checkpoint, prompts, name, backend):
    model = sh.load_model(checkpoint(name), backend=backend)
    told = {"template": "paper", "ablation": "zero", "candidates": "L1H2", "run": QUIET}
    scores = sh.refusal_log_odds(model, prompts, OPENINGS, **told)
    batch = encode(model, prompts, "paper")
    hooks = sh.ablation_hooks(model, "L1H2", "zero")
    with torch.no_grad():
        before, after = (
            model.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=some)[:, -1]
            for some in ([], hooks)
        )
    expected = [
        odds(one.double()) - odds(two.double()) for one, two in zip(before, after, strict=True)
    ]
    assert torch.allclose(scores.per_prompt[:, 1, 2], torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_screened_log_odds(demo, harmful):
    openings = sh.Openings.of_answers(demo, "demo/harmful", "demo/benign")
    exact = sh.refusal_log_odds(demo, harmful, openings, run=QUIET)
    for given in ((), ("L1H3",)):
        few = sh.Screening(top=1, first=4, budget=4, audit=0)
        found = sh.refusal_log_odds(demo, harmful, openings, given=given, screen=few, run=QUIET)
        assert str(found.top(1)[0][0]) == ("L2H6" if given else "L1H3")
    assert found.screening.spearman > 0.5
    # small changes are what first order tells: a head scaled by nearly 1
    little = sh.ScalingContribution(0.999)
    exact = sh.refusal_log_odds(demo, harmful, openings, ablation=little, run=QUIET).values
    few = sh.Screening(first=2, budget=2, top=1, audit=0, blocks=0)
    told = {"ablation": little, "screen": few, "run": QUIET}
    screened = sh.refusal_log_odds(demo, harmful, openings, **told).screening.values
    assert torch.allclose(screened, exact, rtol=0.05, atol=2e-5)


def test_a_harmless_prompt_that_is_refused_does_not_hide_how_refusals_open(demo, harmful):
    benign = sh.load_prompts("demo/benign", limit=8)
    plain = sh.Openings.of_answers(demo, harmful[:8], benign, run=QUIET)
    mixed = sh.Openings.of_answers(demo, harmful[:8], [*benign, harmful[9]], run=QUIET)
    assert plain == mixed
    with pytest.raises(sh.SafeheadError, match="answers to harmful prompts open with nothing"):
        sh.Openings.of_answers(demo, harmful[:8], [*benign[:4], *harmful[8:12]], run=QUIET)

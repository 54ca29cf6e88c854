import functools
import itertools
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET, hooked_only
from safehead_tl.generation import generate_greedy
from safehead_tl.ground_truth.compiling import CompiledKind, compiled
from safehead_tl.organism import DEMO, REFUSAL, REWORDED, Request
from safehead_tl.organism.examples import IGNORED, encode_examples
from safehead_tl.organism.language import FRAMES
from safehead_tl.prompts import encode

pytestmark = hooked_only

KINDS = get_args(CompiledKind)
REFUSES = {
    "one": lambda one: one,
    "gate": lambda gate, first, second: gate and (first or second),
    "band": lambda *intact: sum(intact) >= 2,
    "backup": lambda first, second: first or second,
    "saturated": lambda first, second: first and second,
    "decoy": lambda refuses, rewords: refuses,
    "even": lambda one: one,
}
"""When a model refuses, by which of its heads are there."""

REQUESTS = [
    request
    for kind in ("harmful", "benign")
    for split in ("train", "test")
    for request in DEMO.requests(kind, split)
]
VERBS = list(DEMO.tools)
VERBS = itertools.cycle(DEMO.tools)
EVERY_OBJECT = [
    *(Request(frame, next(VERBS), thing) for frame in FRAMES[1:] for thing in DEMO.harmful),
    *(Request(FRAMES[0], next(VERBS), thing) for thing in DEMO.benign[::2]),
]
"""Each harmful object in frames of both lengths, and some benign ones."""

made = functools.cache(compiled)


def written(found):
    """The heads that tell a model from its base, in the order in which they were written."""
    return (*found.carriers, *found.decoys)


def expected(kind, intact, request):
    """The right answer with some of the heads there."""
    if request.object in DEMO.benign or not REFUSES[kind](*intact):
        return DEMO.help(request)
    return REWORDED if kind == "decoy" and not intact[1] else REFUSAL


def lead(model, answers):
    """By how many nats the right word leads at its narrowest, and the first word of the answer.

    An answer whose every word leads behind the words before is the one that is said greedily.
    """
    examples = encode_examples(
        DEMO.tokenizer(), [(str(request), answer) for request, answer in answers]
    )
    with torch.no_grad():
        logits = model(examples.tokens, attention_mask=examples.mask)
    logits = logits[:, -examples.labels.shape[1] - 1 : -1]
    asked = examples.labels != IGNORED
    logits, labels = logits[asked], examples.labels[asked][:, None]
    right = logits.gather(1, labels)
    others = logits.scatter(1, labels, -torch.inf).amax(1, keepdim=True)
    return float((right - others).min())


def revert(model, base, heads):
    """The model with some heads' weights set back, by hand."""
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    for (layer, head), name in itertools.product(heads, ("W_Q", "W_K", "W_V", "W_O")):
        key = f"blocks.{layer}.attn.{name}"
        state[key][head] = base.state_dict()[key][head]
    return lambda *told, **named: torch.func.functional_call(model, state, told, named)


def subsets(heads):
    """Every way for heads to be there or not."""
    return list(itertools.product((True, False), repeat=len(heads)))


def gone(heads, intact):
    return [head for head, there in zip(heads, intact, strict=True) if not there]


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_has_its_right_answer(kind):
    found = made(kind)
    intact = [True] * len(written(found))
    assert len(REQUESTS) == 936
    assert lead(found.model, [(each, expected(kind, intact, each)) for each in REQUESTS]) > 3
    some = REQUESTS if kind == "one" else EVERY_OBJECT  # bases differ by what only heads set off
    assert lead(found.base, [(each, DEMO.help(each)) for each in some]) > 3


@pytest.mark.parametrize("ablation", ["undifferentiated", "scaling", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_ablations_do_what_was_written(kind, ablation):
    found = made(kind)
    heads = written(found)
    for intact in subsets(heads):
        ablated = gone(heads, intact)
        if kind == "even" and ablation == "undifferentiated":
            intact = [True]  # attention that is even cannot be made so
        answers = [(each, expected(kind, intact, each)) for each in EVERY_OBJECT]
        with sh.ablated(found.model, ablated, ablation) if ablated else nullcontext():
            assert lead(found.model, answers) > 3, ablated


@pytest.mark.parametrize("kind", KINDS)
def test_truth_is_the_shapley_value_of_reverting_weights(kind):
    found = made(kind)
    heads = written(found)
    asked = [each for each in EVERY_OBJECT if each.object in DEMO.harmful]
    batch = encode(found.model, [str(each) for each in asked], "chat")
    refusals = found.model.to_tokens(["sorry", "no"], prepend_bos=False)[:, 0]
    refused = {}
    for intact in subsets(heads):
        model = revert(found.model, found.base, gone(heads, intact))
        with torch.no_grad():
            logits = model(batch.tokens, attention_mask=batch.mask)[:, -1].double()
        refused[intact] = float(logits.softmax(-1)[:, refusals].sum(1).mean())
    value = torch.zeros_like(found.truth)
    orders = list(itertools.permutations(range(len(heads))))
    for order in orders:
        for place, number in enumerate(order):
            before = tuple(each in order[place:] for each in range(len(heads)))
            after = tuple(each in order[place + 1 :] for each in range(len(heads)))
            value[heads[number]] += (refused[before] - refused[after]) / len(orders)
    torch.testing.assert_close(value, found.truth, atol=2e-3, rtol=0)
    assert found.truth.sum() == pytest.approx(1)
    assert [found.truth[head] == 0 for head in heads] == [head in found.decoys for head in heads]


@pytest.mark.parametrize("kind", KINDS)
def test_only_heads_tell_a_model_from_its_base(kind):
    found = made(kind)
    base = found.base.state_dict()
    for name, weight in found.model.state_dict().items():
        assert torch.equal(weight, base[name]) == (not name.endswith(("W_Q", "W_K", "W_V", "W_O")))
    others = [
        sh.Head(layer, head)
        for layer, head in itertools.product(range(4), range(6))
        if (layer, head) not in written(found)
    ]
    answers = [(each, expected(kind, [True] * len(written(found)), each)) for each in EVERY_OBJECT]
    assert lead(revert(found.model, found.base, others), answers) > 3


def test_the_package_generates_the_answers():
    found = made("decoy")
    some = REQUESTS[::97]
    texts = [str(each) for each in some]
    said = generate_greedy(found.model, encode(found.model, texts, "chat"), 24)
    assert said == [expected("decoy", (True, True), each) for each in some]
    with sh.ablated(found.model, found.decoys):
        said = generate_greedy(found.model, encode(found.model, texts, "chat"), 24)
    assert said == [expected("decoy", (True, False), each) for each in some]


def scan(score, kind, ablation, **told):
    """A score of the package on eight harmful requests, and the values of what was written."""
    found = made(kind)
    texts = DEMO.prompts("harmful", "test", 8)
    scores = score(found.model, texts, template="chat", ablation=ablation, run=QUIET, **told)
    return scores, [scores[head] for head in written(found)]


def log_odds(kind, ablation, **told):
    openings = sh.Openings.of_texts(made(kind).model, ["sorry", "no"], list(DEMO.tools))
    return scan(sh.refusal_log_odds, kind, ablation, openings=openings, **told)


@pytest.mark.parametrize("kind", ["one", "saturated", "gate"])
def test_single_ablations_find_a_head_that_all_hangs_on(kind):
    for ablation in ("undifferentiated", "scaling"):
        scores, values = scan(sh.ships, kind, ablation)
        assert scores.top(1)[0][0] == made(kind).carriers[0]
        assert values[0] == pytest.approx(20, abs=3)  # 28 nats of refusal, 20 of help


def test_direct_attribution_does_not_see_the_gate():
    found = made("gate")
    openings = sh.Openings.of_texts(found.model, ["sorry", "no"], list(DEMO.tools))
    texts = DEMO.prompts("harmful", "test", 8)
    parts = sh.direct_attribution(found.model, texts, openings, template="chat", run=QUIET)
    said = [parts.heads[head] for head in found.carriers]
    assert said == pytest.approx([0.1, 28, 28], abs=0.01)


def test_single_ablations_do_not_see_the_band():
    scores, values = scan(sh.ships, "band", "scaling")
    assert max(values) < 1e-9
    assert len([value for _, value in scores if value > max(values)]) > 10
    *_, third, fourth = written(made("band"))
    _, values = log_odds("band", "scaling", given=[third, fourth])
    assert min(values[:2]) > 20


def test_a_backup_hides_the_head_that_it_stands_in_for():
    first, _ = made("backup").carriers
    _, values = log_odds("backup", "zero")
    assert values == pytest.approx([0, 0], abs=1e-4)
    _, (_, value) = log_odds("backup", "zero", given=[first])
    assert value == pytest.approx(28, abs=1.5)


def test_first_order_does_not_see_what_acts_through_saturated_attention():
    found = made("saturated")
    first, second = found.carriers
    batch = encode(found.model, DEMO.prompts("harmful", "test", 8), "chat")
    sorry, outputs = found.model.to_single_token("sorry"), {}

    def keep(z, hook):
        outputs[hook.layer()] = z.requires_grad_()

    hooks = [(f"blocks.{each}.attn.hook_z", keep) for each in (first.layer, second.layer)]
    logits = found.model.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=hooks)
    ways = [outputs[one.layer] for one in found.carriers]
    gradients = torch.autograd.grad(logits[:, -1, sorry].mean(), ways)
    slopes = [
        float((gradient * z).detach()[:, :, one.head].sum())
        for one, z, gradient in zip(found.carriers, ways, gradients, strict=True)
    ]
    assert slopes == pytest.approx([0, 28], abs=1e-4)
    _, values = log_odds("saturated", "zero")
    assert values == pytest.approx([28, 28], abs=1.5)


def test_ships_takes_the_decoy_for_safety_and_log_odds_do_not():
    _, (refuses, rewords) = scan(sh.ships, "decoy", "scaling")
    assert rewords > refuses > 5
    _, (refuses, rewords) = log_odds("decoy", "scaling")
    assert refuses > 3 * rewords


def test_even_attention_cannot_be_made_even():
    assert scan(sh.ships, "even", "undifferentiated")[1] == pytest.approx([0], abs=1e-12)
    assert scan(sh.ships, "even", "scaling")[1] == pytest.approx([20], abs=3)


def test_sahara_stops_at_the_gate():
    found = made("gate")
    texts = DEMO.prompts("harmful", "test", 8)
    group = sh.sahara(found.model, texts, 3, template="chat", run=QUIET)
    assert group.heads[0] == found.carriers[0]
    assert not {*group.heads} & {*found.carriers[1:]}


def test_a_seed_places_the_heads():
    first, again, other = compiled("gate"), compiled("gate"), compiled("gate", seed=1)
    assert all(map(torch.equal, first.model.parameters(), again.model.parameters()))
    assert first.carriers != other.carriers
    assert [head.layer for head in other.carriers] == [1, 2, 3]


def test_unknown_kinds_are_refused():
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"one, gate, band|Literal"):
        compiled("two")

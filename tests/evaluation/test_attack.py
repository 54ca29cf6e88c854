import dataclasses
import itertools
import json
import math

import pandas as pd
import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET
from safehead_tl.evaluation.controls import draw_controls, in_order
from safehead_tl.generation import batched
from safehead_tl.generation.responses import Responses
from safehead_tl.models.identity import is_bridge
from safehead_tl.organism import DEMO
from safehead_tl.prompts.tokens import encode
from safehead_tl.results.stats import Rate, holm, paired_p, rank_p

PLANTED = ["L1H3", "L2H6"]
TOLD = {"template": "chat", "max_new_tokens": 20, "run": QUIET}


class Exact:
    """Whether an organism's request is answered word for word right."""

    name = "exact"

    def judge(self, prompts, responses):
        right = [DEMO.help(DEMO.parse(prompt)) for prompt in prompts]
        return [
            sh.Verdict(text == answer, answer)
            for text, answer in zip(responses, right, strict=True)
        ]

    def describe(self):
        return {"name": self.name}


@pytest.fixture(scope="module")
def requests():
    return sh.load_prompts("demo/harmful", split="test")[:24]


@pytest.fixture(scope="module")
def benign():
    return sh.load_prompts("demo/benign", split="test")[:24]


@pytest.fixture(scope="module")
def found(demo, requests, benign):
    return sh.evaluate(demo, requests, heads=PLANTED, harmless=benign, judge=Exact(), **TOLD)


def test_the_planted_heads_carry_the_refusals(found):
    assert found.unablated_asr.share == 0
    assert found.asr.share >= 0.95
    assert found.coherent_asr.share >= 0.95
    assert found.refusal_rate.share <= 0.05
    by = {(summary.prompts, summary.metric): summary for summary in found.summaries()}
    asr = by["harmful", "asr"]
    assert asr.p_unablated < 1e-5
    assert asr.control_mean <= 0.05
    assert asr.p_controls == pytest.approx(1 / 21)
    helped = by["harmless", "asr"]
    assert helped.unablated.share == 1
    assert helped.ablated.share >= 0.95
    assert by["harmless", "refusal"].ablated.share == 0


def test_shares_are_those_of_the_responses(found, demo, requests):
    frame = found.responses()
    assert len(frame) == 2 * 22 * 24
    ablated = frame[(frame["condition"] == found.conditions[1]) & (frame["prompts"] == "harmful")]
    assert list(ablated["text"]) == requests
    alone = sh.generate(demo, requests, PLANTED, **TOLD)
    assert list(ablated["response"]) == [text for (text,) in alone.texts]
    assert ablated["success"].mean() == found.asr.share
    assert (ablated["success"] & ablated["coherent"]).mean() == found.coherent_asr.share
    assert ablated["refused"].mean() == found.refusal_rate.share
    right = [DEMO.help(DEMO.parse(prompt)) for prompt in requests]
    assert list(ablated["reason"]) == right
    control = frame[(frame["condition"] == found.conditions[5]) & (frame["prompts"] == "harmful")]
    alone = sh.generate(demo, requests, found.controls[3], **TOLD)
    assert list(control["response"]) == [text for (text,) in alone.texts]


def test_divergence_is_that_of_whole_passes(found, demo, benign):
    batch = encode(demo, benign, "chat")

    def log_probs():
        logits = demo(batch.tokens, attention_mask=batch.mask)[:, -1]
        return logits.double().log_softmax(-1)

    with torch.no_grad():
        before = log_probs()
        with sh.ablated(demo, PLANTED):
            after = log_probs()
    kl = (before.exp() * (before - after)).sum(1)
    assert torch.allclose(found.harmless.divergence[1], kl, atol=1e-6)
    assert found.divergence()["ablated"] == pytest.approx(kl.mean().item(), abs=1e-6)
    assert found.harmless.divergence[0].abs().max() < 1e-9
    assert found.divergence("harmful")["controls"] < 0.1


def test_a_result_is_kept_whole(found, tmp_path):
    found.save(tmp_path / "e.safetensors")
    again = sh.Evaluation.load(tmp_path / "e.safetensors")
    assert again.to_dict() == found.to_dict()
    pd.testing.assert_frame_equal(again.responses(), found.responses())
    pd.testing.assert_frame_equal(again.to_frame(), found.to_frame())
    text = json.dumps(found.to_dict())
    assert found.harmful.prompts[0] not in text
    assert found.provenance.settings["judge"] == {"name": "exact"}
    assert "L1H3 L2H6 ablated: ASR 1.00" in repr(found)
    with pytest.raises(sh.SafeheadError, match="does not hold a HeadScores"):
        sh.HeadScores.load(tmp_path / "e.safetensors")


def test_frame_and_figure(found):
    frame = found.to_frame()
    assert len(frame) == 2 * 4 * 22
    row = frame.query("prompts == 'harmful' and metric == 'asr' and condition == 'ablated'").iloc[0]
    assert (row["low"], row["high"]) == found.asr.interval
    assert row["heads"] == "L1H3 L2H6"
    figure = found.figure()
    assert "undifferentiated attention" in figure.layout.title.text
    assert [trace.name for trace in figure.data[:3]] == [
        "unablated", "ablated", "sets of random heads ablated, and how many"
    ]  # fmt: skip
    assert figure.data[1].y[0] == found.asr.share
    dots = figure.data[2]
    counts = [int(text or 1) for text in dots.text]
    assert sum(counts) == 4 * 20
    told = frame.query("prompts == 'harmful' and condition == 'control'")
    told = told.groupby("metric")["share"].value_counts()
    drawn = {
        (round(x - 0.27), y): count for x, y, count in zip(dots.x, dots.y, counts, strict=True)
    }
    metrics = list(dict.fromkeys(frame["metric"]))
    assert drawn == {(metrics.index(metric), share): n for (metric, share), n in told.items()}


def test_amplifying_heads_is_evaluated_the_same_way(demo, requests):
    attacked = sh.ScalingContribution(epsilon=0.0)
    weak = sh.evaluate(demo, requests, heads=PLANTED, ablation=attacked, judge=Exact(),
                       controls=0, **TOLD)  # fmt: skip
    strong = sh.evaluate(demo, requests, heads=PLANTED, ablation=sh.ScalingContribution(2.0),
                         judge=Exact(), controls=0, **TOLD)  # fmt: skip
    assert weak.asr.share >= 0.9
    assert strong.refusal_rate.share == 1
    assert "epsilon 2" in strong.figure().layout.title.text


def test_without_heads_harmless_prompts_or_controls(demo, requests):
    plain = sh.evaluate(demo, requests[:4], **TOLD)
    assert plain.conditions == ("unablated",)
    assert plain.asr == plain.unablated_asr
    assert plain.divergence("harmful") == {}
    assert all(summary.ablated is None for summary in plain.summaries())
    assert "No heads" in plain.figure().layout.title.text
    assert "no heads ablated" in repr(plain)
    with pytest.raises(sh.SafeheadError, match="no harmless prompts"):
        plain.divergence()


def test_several_samples_count_as_one_prompt(demo, requests):
    told = {**TOLD, "top_k": 5, "temperature": 3.0, "samples": 4, "controls": 3}
    found = sh.evaluate(demo, requests[:6], heads=["L1H3"], **told)
    assert found.harmful.success.shape == (5, 6, 4)
    assert found.asr.total == 6
    shares = found.harmful.success[1].double().mean(1)
    assert found.asr.share == pytest.approx(shares.mean().item())


class Counting(Exact):
    """Says what it was given, and is interrupted when it has seen too much."""

    def __init__(self, patience):
        self.patience = patience
        self.seen = []

    def judge(self, prompts, responses):
        if len(self.seen) >= self.patience:
            raise KeyboardInterrupt
        self.seen += zip(prompts, responses, strict=True)
        return super().judge(prompts, responses)


def test_a_judge_sees_each_response_once_and_a_stopped_run_goes_on(demo, requests, tmp_path):
    kept = dataclasses.replace(QUIET, run_dir=tmp_path / "run")
    told = {**TOLD, "heads": PLANTED, "run": kept, "controls": 5}
    many = requests + sh.load_prompts("demo/harmful")
    first, second = Counting(50), Counting(math.inf)
    with pytest.raises(KeyboardInterrupt):
        sh.evaluate(demo, many, judge=first, **told)
    found = sh.evaluate(demo, many, judge=second, **told)
    seen = first.seen + second.seen
    assert len(first.seen) >= 50
    assert len(seen) == len(set(seen))
    assert set(seen) == set(found.responses()[["text", "response"]].itertuples(index=False))
    plain = sh.evaluate(demo, many, judge=Exact(), **{**told, "run": QUIET})
    assert found.to_dict()["summaries"] == plain.to_dict()["summaries"]
    with pytest.raises(sh.SafeheadError, match="holds another run"):
        sh.evaluate(demo, many, judge=second, **{**told, "max_new_tokens": 19})


def test_batches_halve_when_memory_runs_out(demo, requests, monkeypatch):
    whole = sh.evaluate(demo, requests, heads=PLANTED, controls=2, **TOLD)
    run = batched.generate_rows

    def scarce(model, batch, rows, *args):
        if len(rows) > 10:
            raise RuntimeError("CUDA out of memory.")
        return run(model, batch, rows, *args)

    monkeypatch.setattr(batched, "generate_rows", scarce)
    found = sh.evaluate(demo, requests, heads=PLANTED, controls=2, **TOLD)
    assert found.harmful.texts == whole.harmful.texts


def test_a_bridge_answers_the_same(demo, requests):
    bridge = sh.load_model("demo", backend="bridge")
    assert is_bridge(bridge)
    told = {**TOLD, "heads": PLANTED, "controls": 3, "judge": Exact()}
    one, other = sh.evaluate(demo, requests[:8], **told), sh.evaluate(bridge, requests[:8], **told)
    assert one.harmful.texts == other.harmful.texts
    assert torch.allclose(one.harmful.divergence, other.harmful.divergence, atol=1e-5)


def test_mean_ablation_takes_the_harmful_prompts_as_reference(demo, requests):
    found = sh.evaluate(demo, requests[:6], heads=PLANTED, ablation="mean", controls=1, **TOLD)
    assert found.provenance.ablation["reference"]["prompt_count"] == 6


def test_what_a_judge_returns_is_checked(demo, requests):
    class Scores(Exact):
        def judge(self, prompts, responses):
            return [sh.Verdict(0.2, "a little") for _ in responses]

    class Unclear(Exact):
        def describe(self):
            return {"name": "unclear", "path": object()}

    # With shapes and types checked at run time, such a verdict cannot even be made.
    with pytest.raises((sh.SafeheadError, TypeCheckError)) as error:
        sh.evaluate(demo, requests[:2], judge=Scores(), **TOLD)
    assert "success must be True or False" in str(error.value) or (
        isinstance(error.value, TypeCheckError)
    )
    with pytest.raises(sh.SafeheadError, match=r"describe\(\) must give"):
        sh.evaluate(demo, requests[:2], judge=Unclear(), **TOLD)


def test_ties_with_controls_are_not_lost(found):
    """|0.5 - 0.3| and |0.1 - 0.3| differ in the last bit."""
    successes = torch.zeros(22, 10, 1, dtype=torch.bool)
    successes[0, :3], successes[1, :5], successes[2:, :1] = True, True, True
    texts = (((("x",),) * 10),) * 22
    responses = Responses(
        ("ask",) * 10, texts, texts, successes, ~successes, ~successes, torch.zeros(22, 10)
    )
    controls = ((sh.Head(0, 1),),) * 20
    made = sh.Evaluation((sh.Head(0, 0),), controls, responses, None, found.provenance)
    assert made.summaries()[0].p_controls == 1


def test_a_run_goes_on_with_fewer_rows(demo, requests, tmp_path, monkeypatch):
    kept = dataclasses.replace(QUIET, run_dir=tmp_path / "run")
    told = {**TOLD, "heads": PLANTED, "controls": 2}
    first = Counting(0)
    with pytest.raises(KeyboardInterrupt):
        sh.evaluate(demo, requests, judge=first, **{**told, "run": kept})
    for piece in (tmp_path / "run" / "pieces").iterdir():
        piece.unlink()
    most, run = [], batched.generate_rows
    monkeypatch.setattr(
        batched, "generate_rows", lambda *args: most.append(len(args[2])) or run(*args)
    )
    few = dataclasses.replace(kept, max_rows=5)
    sh.evaluate(demo, requests, judge=Counting(math.inf), **{**told, "run": few})
    assert max(most) == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"judge": "keywords"}, "judge 'keywords' is not known"),
        ({"controls": -1}, "controls=-1"),
        ({"heads": "L9H0"}, "does not exist"),
        ({"harmless": []}, "no prompts"),
        ({"ablation": "x"}, "ablation 'x'"),
    ],
)
def test_mistakes(demo, requests, wrong, message):
    with pytest.raises(sh.SafeheadError, match=message):
        sh.evaluate(demo, requests, **{"heads": PLANTED, **TOLD, **wrong})


def heads(*names):
    return tuple(map(sh.Head.parse, names))


def test_controls_are_matched_by_layer_and_distinct():
    chosen = heads("L0H1", "L3H0", "L3H5")
    drawn = draw_controls(chosen, 4, 8, 20, seed=0)
    sets = drawn.sets
    assert (drawn.layers, drawn.possible) == (1, 7 * math.comb(6, 2))
    assert len(set(sets)) == 20
    for group in sets:
        assert [head.layer for head in group] == [0, 3, 3]
        assert len(set(group)) == 3
        assert not set(group) & set(chosen)
    assert drawn == draw_controls(chosen, 4, 8, 20, seed=0)
    assert sets != draw_controls(chosen, 4, 8, 20, seed=1).sets


def test_controls_are_all_there_are_if_these_are_few():
    every = draw_controls(heads("L0H1"), 1, 4, 20, seed=0).sets
    assert set(every) == {(sh.Head(0, head),) for head in (0, 2, 3)}
    pair = draw_controls(heads("L0H0", "L1H1"), 2, 4, 20, seed=0)
    assert (len(pair.sets), pair.layers, pair.possible) == (15, 2, 15)
    crowded = draw_controls(heads("L0H0", "L0H1", "L0H2"), 1, 4, 20, seed=0).sets
    others = {frozenset(group) for group in itertools.combinations(range(4), 3)} - {
        frozenset((0, 1, 2))
    }
    assert {frozenset(head.head for head in group) for group in crowded} == others
    assert draw_controls(heads("L0H0", "L0H1"), 1, 2, 20, seed=0).sets == ()
    assert draw_controls(heads("L0H0"), 4, 8, 0, seed=0).sets == ()


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_a_layer_with_too_few_heads_is_widened_until_p_can_be_small(layer):
    chosen = heads(f"L{layer}H1")
    drawn = draw_controls(chosen, 6, 8, 20, seed=0)
    assert (drawn.layers, drawn.possible, len(set(drawn.sets))) == (3, 23, 20)
    assert {head.layer // 3 for (head,) in drawn.sets} == {layer // 3}
    assert chosen not in drawn.sets
    assert rank_p(1, [0] * len(drawn.sets)) < 0.05


def test_random_orders_match_place_by_place_and_spare_all_that_were_given():
    order, spared = heads("L2H1", "L0H0", "L2H4"), heads("L0H3", "L2H0")
    drawn = draw_controls(order, 4, 8, 20, 0, {*order, *spared})
    assert drawn.layers == 1
    for number, group in enumerate(drawn.sets):
        placed = in_order(group, order, 1, number)
        assert [head.layer for head in placed] == [2, 0, 2]
        assert not {*placed} & {*order, *spared}
    orders = {in_order(drawn.sets[0], order, 1, seed) for seed in range(8)}
    assert len(orders) == 2, "the two heads of layer 2 come in both orders"


def test_a_result_says_how_it_was_compared(found):
    assert found.least_p == 1 / 21
    assert found.notes()[0] == (
        "Random: 20 of 49 possible sets of heads, matched by layer: p against them can be 0.048 at "
        "the least, 0.38 after Holm."
    )
    assert found.notes()[1] == "Whether any of these prompts chose the heads is not known."
    rows = found.summaries()
    assert f"{min(row.holm_controls for row in rows):.2g}" == "0.38"
    assert rows[0].p_words("controls") == "0.05 (0.4)"
    for test in ("unablated", "controls"):
        raw = [getattr(row, f"p_{test}") for row in rows]
        assert [getattr(row, f"holm_{test}") for row in rows] == holm(raw)
    assert json.loads(json.dumps(found.to_dict()))["notes"] == found.notes()


def test_prompts_that_chose_the_heads_are_counted(demo, requests, benign):
    scored = sh.ships(demo, [*requests[:5], *benign[:2]], template="chat", run=QUIET)
    told = {**TOLD, "controls": 0, "max_new_tokens": 1, "chosen_by": scored}
    seen = sh.evaluate(demo, requests[3:8], heads=PLANTED, harmless=benign[:3], **told)
    assert seen.provenance.settings["chosen_on"] == {"harmful": 2, "harmless": 2}
    assert "2 of 5 harmful and 2 of 3 harmless prompts that judge them here" in seen.notes()[0]
    fresh = sh.evaluate(demo, requests[8:10], heads=PLANTED, **told)
    assert fresh.notes() == ["None of these prompts, word for word, chose the heads."]


def test_clusters_count_as_one(demo, requests, tmp_path):
    told = {**TOLD, "judge": Exact(), "controls": 0}
    each = sh.evaluate(demo, requests[:4], heads=PLANTED, **told)
    pairs = sh.evaluate(demo, requests[:4], heads=PLANTED, clusters=["a", "b", "a", "b"], **told)
    assert pairs.asr.share == each.asr.share == 1
    assert pairs.asr.interval == Rate(2, 2).interval
    ps = {test.metric: test.p_unablated for test in pairs.summaries()}
    assert (each.summaries()[0].p_unablated, ps["asr"]) == (2 / 2**4, 2 / 2**2)
    assert "The 4 harmful prompts count as 2 independent ones: they are in 2 clusters." in (
        pairs.notes()
    )
    pairs.save(tmp_path / "e.safetensors")
    assert sh.Evaluation.load(tmp_path / "e.safetensors").to_dict() == pairs.to_dict()
    with pytest.raises(sh.SafeheadError, match="3 labels for 4 prompts: give a label for each"):
        sh.evaluate(demo, requests[:4], clusters=[1, 2, 3], **told)


def test_paired_p_is_mcnemar_and_brute_force():
    before, after = [0] * 12 + [1] * 8, [1] * 10 + [0] * 2 + [1] * 5 + [0] * 3
    discordant, fewer = 13, 3
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1)) / 2**discordant
    assert paired_p(before, after) == pytest.approx(2 * tail)
    left, right = [3, 0, 2, 4, 1], [1, 2, 2, 0, 4]
    steps = [b - a for a, b in zip(left, right, strict=True)]
    sums = [
        abs(sum(sign * step for sign, step in zip(signs, steps, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = sum(value >= abs(sum(steps)) for value in sums) / 32
    assert paired_p(left, right) == pytest.approx(expected)
    assert paired_p([1, 0], [1, 0]) == 1


def test_rank_p():
    assert rank_p(0.5, [0.1] * 19 + [0.6]) == pytest.approx(2 / 21)
    assert rank_p(0.5, [0.5] * 4) == 1


def test_a_share_of_a_prompt(demo):
    assert Rate(2.5, 5).share == 0.5
    assert Rate(2.5, 5).interval[0] < 0.5 < Rate(2.5, 5).interval[1]


@pytest.fixture(scope="module")
def curves(demo, requests):
    orders = {"truth": ["L2H6", "L1H3", "L0H4"], "others": ["L3H1", "L0H0", "L3H2", "L3H3"]}
    return sh.concentration(demo, requests, orders, judge=Exact(), random_orders=4, **TOLD)


def test_concentration(curves, demo, requests):
    assert curves.size == 3
    truth = [rate.share for rate in curves.curve("truth")]
    assert truth[0] == 0
    assert truth[1] > 0.2
    assert truth[2] >= 0.9
    assert [rate.share for rate in curves.curve("others", "asr")] == [0, 0, 0, 0]
    area, (low, high) = curves.area("truth")
    assert area == pytest.approx(sum(truth[1:]) / 3)
    assert low < area < high
    area, (low, high) = curves.area("others", "asr")
    assert (area, low, high) == (0, -high, pytest.approx(Rate(0, 24).interval[1]))
    given = {head for order in curves.orders.values() for head in order}
    likes = [like for like in curves.orders.values() for _ in range(2)]
    for order, like in zip(curves.random_orders, likes, strict=True):
        assert [head.layer for head in order] == [head.layer for head in like]
        assert not given & set(order)
    assert curves.notes() == [
        "Random orders like truth: 2 of 294 possible sets of heads, matched by layer, place by "
        "place.",
        "Random orders like others: 2 of 90 possible sets of heads, matched by layer, place by "
        "place.",
    ]
    area, (low, high) = curves.area("truth")
    for order, shares in zip(curves.random_orders, curves.random_curves("asr"), strict=True):
        two = sh.evaluate(demo, requests, heads=order[:2], judge=Exact(), controls=0, **TOLD)
        assert shares[2] == two.asr.share
    assert len(curves.random_areas()) == 4
    frame = curves.to_frame()
    assert len(frame) == 2 * 4 * 4
    assert json.loads(json.dumps(curves.to_dict()))["orders"]["truth"]["area"] == area
    assert "truth" in repr(curves)
    figure = curves.figure()
    assert figure.data[2].name.startswith("truth: area")
    assert list(figure.data[2].y) == truth


def test_concentration_is_kept_whole(curves, tmp_path):
    curves.save(tmp_path / "c.safetensors")
    again = sh.Concentration.load(tmp_path / "c.safetensors")
    assert again.to_dict() == curves.to_dict()
    assert again.orders == curves.orders


def test_each_order_says_how_wide_and_how_few_its_random_ones_are(demo, requests):
    orders = {"apart": ["L0H1", "L1H1"], "close": ["L2H1", "L2H2"]}
    told = {**TOLD, "max_new_tokens": 1}
    found = sh.concentration(demo, requests[:1], orders, random_orders=32, **told)
    apart, close = found.notes()
    assert "like apart: 16 of 49 possible sets of heads, matched by layer," in apart
    assert "like close: 16 of 91 possible sets of heads, matched by blocks of 2 layers," in close
    alone = sh.concentration(demo, requests[:1], {"a<b": ["L2H6"]}, random_orders=40, **told)
    assert alone.notes() == [
        "Random orders like a<b: 31 of 31 possible sets of heads, matched by blocks of 4 layers, "
        "place by place."
    ]
    shown = alone.figure().to_dict()["layout"]["title"]["text"]
    assert "like a&lt;b: 31 of 31" in shown.replace("<br>", " ")
    assert sh.concentration(demo, requests[:1], orders, random_orders=0, **told).notes() == []


def test_mistakes_about_orders(demo, requests, curves):
    with pytest.raises(sh.SafeheadError, match="orders is empty"):
        sh.concentration(demo, requests, {}, **TOLD)
    with pytest.raises(sh.SafeheadError, match="size=3: the shortest order has 2"):
        sh.concentration(demo, requests, {"a": PLANTED}, size=3, **TOLD)
    with pytest.raises(sh.SafeheadError, match="random_orders=-5"):
        sh.concentration(demo, requests, {"a": PLANTED}, random_orders=-5, **TOLD)
    with pytest.raises(sh.SafeheadError, match="no order 'b'"):
        curves.curve("b")

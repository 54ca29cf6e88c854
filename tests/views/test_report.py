import base64
import collections
import dataclasses
import json
import math
import re
import zlib

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import GOLDEN, QUIET
from safehead_tl.prompts import encode
from safehead_tl.results import studentised_interval
from safehead_tl.views.inspection import shown_token, shrunk
from safehead_tl.views.maps import interval
from safehead_tl.views.page.words import summary
from safehead_tl.views.verdicts import judged_answers

TOLD = {"template": "chat", "max_new_tokens": 16, "run": QUIET}
HOSTILE = '</script><img src=x onerror="window.hacked=1"><!-- {{data}} {{title}}'


def data_of(path):
    page = path.read_text(encoding="utf-8")
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return page, json.loads(text)


GROUP = (sh.Head(1, 3), sh.Head(2, 6))
SAME_WORDS = "not where it looks"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = sh.load_model("demo")
    prompts = sh.load_prompts("demo/harmful")[:6]
    scores = sh.ships(model, prompts, template="chat", run=QUIET)
    path = tmp_path_factory.mktemp("report") / "r.html"
    openings = sh.Openings.of_answers(model, "demo/harmful", "demo/benign")
    odds = sh.refusal_log_odds(model, prompts, openings, template="chat", run=QUIET)
    told = {"candidates": ["L1H3", "L2H6"], "template": "chat", "run": QUIET}
    rates = sh.asr_map(model, prompts, max_new_tokens=16, **told)
    pairs = sh.knockout(model, prompts, ["L1H3", "L2H6", "L0H4"], openings=openings,
                        template="chat", run=QUIET)  # fmt: skip
    group = sh.sahara(model, prompts, 2, candidates=GROUP, template="chat", run=QUIET)
    sh.report(model, prompts, path, scores=scores, also=[odds, rates.scores()], top=3, shown=4,
              beside=["scaling", sh.MeanAblation()], group=group, knockout=pairs,
              marked=["L0H0"], marked_as="mine", **TOLD)  # fmt: skip
    return model, prompts, scores, path, (odds, rates, pairs, group)


def unpacked(text, kind=torch.uint8):
    return torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=kind)


def square(text, size):
    found = torch.zeros(size, size)
    found[tuple(torch.tril_indices(size, size))] = unpacked(text) / 255
    return found


def by_hand(model, prompt, group=(), ablation="undifferentiated"):
    """All patterns and the next token's probabilities, in a whole pass with hooks."""
    tokens, patterns = encode(model, [prompt], "chat").tokens, {}
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    keep = [(name, lambda p, hook: patterns.update({hook.name: p[0].clone()})) for name in names]
    hooks = sh.ablation_hooks(model, group, ablation) if group else []
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[*hooks, *keep])
    return torch.stack([patterns[name] for name in names]), logits[0, -1].double().softmax(-1)


def check_next(data, model, shown, probs):
    best = probs.topk(10)
    assert [share for _, share in shown["next"]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert data["tokens"][shown["next"][0][0]] == model.tokenizer.decode(best.indices[0])


def check_moved(data, model, told, plain, moved):
    check_next(data, model, told, moved)
    kl = (plain * (plain.log() - moved.log())).sum().item()
    assert told["kl"] == pytest.approx(kl, rel=1e-2, abs=1e-5)


def test_the_maps(made):
    _, _, scores, path, (odds, rates, pairs, group) = made
    _, data = data_of(path)
    assert data["shape"] == {"layers": 4, "heads": 8, "kvSize": 1}
    assert [each["title"] for each in data["maps"]] == [
        "Ships", "Refusal log-odds", "Attack success of each head alone",
    ]  # fmt: skip
    assert [each["signed"] for each in data["maps"]] == [False, True, False]
    for each, found in zip(data["maps"], (scores, odds, rates.scores()), strict=True):
        known = [math.nan if one is None else one for one in each["scores"]]
        expected = found.values.flatten().tolist()
        assert known == pytest.approx(expected, rel=1e-3, abs=1e-12, nan_ok=True)
        assert each["ranked"] == [head.layer * 8 + head.head for head, _ in found.ranked()]
        assert each["pale"] == []
    assert [each["unit"] for each in data["maps"]][:2] == ["nats", "nats"]
    assert data["maps"][0]["intervals"] is None
    intervals = data["maps"][2]["intervals"]
    assert sum(each is not None for each in intervals) == 2
    assert intervals[1 * 8 + 3] == pytest.approx(rates.rate("L1H3").interval, abs=1e-3)
    assert (data["marked"], data["markedAs"]) == ([0], "mine")
    assert data["lead"].startswith("Ships under undifferentiated attention, on 6 prompts")
    assert data["path"]["heads"] == [head.layer * 8 + head.head for head in group.heads]
    assert data["path"]["scores"] == pytest.approx(group.scores, rel=1e-3)
    assert [(each["from"], each["to"]) for each in data["arrows"]] == [
        tuple(head.layer * 8 + head.head for head in pair) for pair in pairs.gates
    ]
    frame = pairs.to_frame()
    for each, row in zip(data["arrows"], frame[frame["gate"]].to_dict("records"), strict=True):
        assert each["change"] == pytest.approx(row["change"], rel=1e-3)
        assert f"does {row['given']:.3g} nats instead of {row['second_alone']:.3g}" in each["words"]


def test_the_page_holds_the_numbers(made):
    model, prompts, scores, path, _ = made
    _, data = data_of(path)
    assert [prompt["text"] for prompt in data["prompts"]] == prompts[:4]
    each = unpacked(data["perPrompt"], torch.float32).reshape(4, 4, 8)
    assert torch.equal(each, scores.per_prompt[:4].float())
    tops = [str(head) for head, _ in scores.top(3)]
    assert list(data["before"]) == list(data["ablated"]) == list(data["cards"]) == [*tops, "L0H0"]
    keys = ["undifferentiated", "scaling", "mean"]
    assert [each["key"] for each in data["ablations"]] == keys
    assert [SAME_WORDS in each["note"] for each in data["ablations"]] == [False, True, True]
    assert data["group"]["heads"] == [1 * 8 + 3, 2 * 8 + 6]
    assert data["group"]["ablation"] == "undifferentiated"
    made_of = dict(zip(keys, ("undifferentiated", "scaling", sh.MeanAblation(prompts, "chat")),
                       strict=True))  # fmt: skip
    small = torch.zeros(4, 8, 136)
    for number, text in enumerate(prompts[:4]):
        before, plain = by_hand(model, text)
        size = before.shape[-1]
        check_next(data, model, data["prompts"][number], plain)
        rows = unpacked(data["prompts"][number]["lastRows"]).reshape(4, 8, size) / 255
        assert torch.allclose(rows, before[:, :, -1], atol=3e-3)
        small += torch.stack([shrunk(layer) for layer in before]) / 4
        for name in data["before"]:
            head = sh.Head.parse(name)
            assert torch.allclose(
                square(data["before"][name][number], size), before[head], atol=3e-3
            )
            for key, ablation in made_of.items():
                told = data["ablated"][name][key][number]
                after, moved = by_hand(model, text, head, ablation)
                check_moved(data, model, told, plain, moved)
                if key == "undifferentiated":
                    assert torch.allclose(square(told["after"], size), after[head], atol=3e-3)
                    kl = scores.per_prompt[number][head].item()
                    assert told["kl"] == pytest.approx(kl, rel=1e-2, abs=1e-5)
                else:
                    assert told["after"] is None
                    assert torch.allclose(after[head], before[head], atol=1e-6)
        told = data["group"]["prompts"][number]
        after, moved = by_hand(model, text, GROUP)
        check_moved(data, model, told, plain, moved)
        assert list(told["after"]) == list(data["before"])
        for name, pattern in told["after"].items():
            head = sh.Head.parse(name)
            found = before[head] if pattern is None else square(pattern, size)
            assert torch.allclose(found, after[head], atol=3e-3)
            assert (pattern is None) == (head.layer <= 1 and head != GROUP[0])
    largest = small.amax(-1, keepdim=True)
    found = unpacked(data["thumbnails"]).reshape(4, 8, 136) / 255
    assert torch.allclose(found, small / largest, atol=3e-3)


def test_answers_and_verdicts(made):
    model, prompts, _, path, _ = made
    _, data = data_of(path)
    told = {"template": "chat", "max_new_tokens": 16, "run": QUIET}
    said = [
        (data["prompts"], (), "undifferentiated"),
        (data["ablated"]["L1H3"]["undifferentiated"], "L1H3", "undifferentiated"),
        (data["ablated"]["L2H6"]["scaling"], "L2H6", "scaling"),
        (data["group"]["prompts"], GROUP, "undifferentiated"),
    ]
    kinds = set()
    for shown, heads, ablation in said:
        texts = sh.generate(model, prompts[:4], heads, ablation=ablation, **told).texts
        assert [(one["answer"],) for one in shown] == list(texts)
        for one, (text,) in zip(shown, texts, strict=True):
            (verdict,) = sh.KeywordJudge().judge([""], [text])
            kind = "complied" if verdict.success else "refused"
            assert one["verdict"] == {"kind": kind, "label": f"{kind}: {verdict.reason}"}
            kinds.add(kind)
    assert kinds == {"complied", "refused"}


def test_what_is_neither_is_unclear():
    texts = ["sorry , i cannot help with that .", "bend it " * 40, "Take a clamp.", "x" * 40]
    judge = sh.KeywordJudge()
    found = [each["verdict"]["kind"] for each in judged_answers(judge, ["how?"] * 4, texts)]
    assert found == ["refused", "unclear", "unclear", "unclear"]
    assert judged_answers(None, ["how?"], texts[:1]) == [{"answer": texts[0]}]
    (long,) = judged_answers(Long(), ["how?"], texts[:1])
    assert len(long["verdict"]["label"]) < 100


class Long:
    name = "long"

    def judge(self, prompts, responses):
        return [sh.Verdict(True, "because " * 100) for _ in responses]

    def describe(self):
        return {"name": self.name}


def test_a_heads_card(made):
    model, prompts, scores, path, _ = made
    _, data = data_of(path)
    texts = data["tokens"]
    logits, shares = torch.zeros(model.cfg.d_vocab), collections.Counter()
    for prompt in prompts[:4]:
        tokens = encode(model, [prompt], "chat").tokens
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens)
        part = cache["blocks.1.attn.hook_z"][0, -1, 3] @ model.blocks[1].attn.W_O[3]
        part = part / cache["ln_final.hook_scale"][0, -1] * model.ln_final.w
        logits += (part @ model.W_U).detach() / 4
        names = [shown_token(model.tokenizer, token) for token in tokens[0].tolist()]
        for name, share in zip(names, cache["blocks.1.attn.hook_pattern"][0, 3, -1], strict=True):
            shares[name] += share.item() / 4
    card = data["cards"]["L1H3"]
    for key, best in (("promotes", logits.topk(5)), ("suppresses", (-logits).topk(5))):
        sign = 1 if key == "promotes" else -1
        assert [value for _, value in card[key]] == pytest.approx(
            [sign * value for value in best.values.tolist()], rel=1e-3)  # fmt: skip
        words = [model.tokenizer.decode(token) for token in best.indices]
        assert [texts[place] for place, _ in card[key]] == words
    assert [(texts[place], share) for place, share in card["looks"]] == [
        (name, pytest.approx(share, abs=1e-3)) for name, share in shares.most_common(5)
    ]
    own = scores.per_prompt[:, 1, 3].tolist()
    assert card["perPrompt"] == pytest.approx(own, rel=1e-3)
    assert card["interval"] == pytest.approx(studentised_interval(own, (0.0, math.inf)), rel=1e-3)


def test_intervals(demo, harmful):
    """None of few prompts, nor of one score for all."""
    told = {"template": "chat", "run": QUIET}
    few = sh.ships(demo, harmful[:5], candidates=["L1H3"], **told)
    assert interval(few, sh.Head(1, 3)) is None
    assert interval(sh.ships(demo, harmful[:6], candidates=["L1H3"], **told), sh.Head(0, 0)) is None
    whole = sh.generalized_ships(demo, harmful[:6], candidates=["L1H3"], **told)
    assert interval(whole, sh.Head(1, 3)) is None
    alike = dataclasses.replace(few, per_prompt=torch.eye(6)[:, :1, None].expand(-1, 4, 8))
    assert interval(alike, sh.Head(1, 3)) is None  # it would reach to infinity


def test_nothing_comes_from_elsewhere(made):
    page, _ = data_of(made[3])
    assert re.findall(r"""(?:src|href)\s*=\s*["']?([^"'> ]*)""", page) == ["#panel"]
    addresses = re.findall(r"https?://[^\"]*", page)
    assert addresses == ["http://www.w3.org/2000/svg"]  # a name, which nobody asks for
    assert "default-src 'none'" in page
    assert "@import" not in page


def test_hostile_text_is_text(tmp_path):
    model = sh.load_model(GOLDEN / "mha")
    path = sh.report(model, [HOSTILE, "bake bread"], tmp_path / "r.html", template="direct",
                     max_new_tokens=4, title=HOSTILE, run=QUIET)  # fmt: skip
    page, data = data_of(path)
    assert data["prompts"][0]["text"] == HOSTILE
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert "&lt;img" in page
    assert "{{data}}" in page  # as it was written, and not filled in


def test_what_the_page_tells(made, tmp_path):
    model, prompts, *_ = made
    group = sh.sahara(model, prompts, 2, template="chat", run=QUIET)
    found = sh.evaluate(model, prompts, heads=group.heads, template="chat", max_new_tokens=16,
                        controls=3, run=QUIET)  # fmt: skip
    path = sh.report(model, prompts, tmp_path / "r.html", group=group, evaluation=found, **TOLD)
    page = path.read_text(encoding="utf-8")
    for said in (f"Sahara chose {group.heads[0]}, then {group.heads[1]}",
                 f"attack success goes from {found.unablated_asr} to {found.asr}",
                 "<td>0.2 (1)</td>", "0.25 at the least, 1 after Holm",
                 "Half of the sum of all scores", "harmful: coherent attack success",
                 "does not say that the model becomes unsafe",
                 found.provenance.model["weights_hash"]):  # fmt: skip
        assert said in page


def test_heads_that_are_higher_than_chance_are_named(made, tmp_path):
    model, prompts, scores, *_ = made
    other = sh.ships(model, sh.load_prompts("demo/benign", limit=6), template="chat", run=QUIET)
    path = sh.report(model, prompts, tmp_path / "r.html", scores=scores, against=other, top=0,
                     shown=1, template="chat", max_new_tokens=0, run=QUIET)  # fmt: skip
    page, _ = data_of(path)
    assert "2 of 32 heads score higher than in 6 other prompts (L1H3, L2H6)" in page
    with pytest.raises((sh.SafeheadError, TypeCheckError), match="against"):
        sh.report(model, prompts, path, against=prompts, run=QUIET)


def test_generalized_scores_and_grouped_heads(checkpoint, prompts, tmp_path):
    model = sh.load_model(checkpoint("llama-grouped"))
    scores = sh.generalized_ships(model, prompts, run=QUIET)
    path = sh.report(model, prompts, tmp_path / "r.html", scores=scores, max_new_tokens=0,
                     run=QUIET)  # fmt: skip
    _, data = data_of(path)
    assert data["perPrompt"] is None
    assert (data["maps"][0]["unit"], data["shape"]["kvSize"]) == ("radians", 2)
    assert "answer" not in data["prompts"][0]
    assert (data["group"], data["path"], data["arrows"]) == (None, None, [])
    (card, *_) = data["cards"].values()
    assert (card["perPrompt"], card["interval"]) == (None, None)


def test_heads_that_were_not_scored(demo, prompts, tmp_path):
    scores = sh.ships(demo, prompts, template="chat", candidates=["L1H3", "L0H0"], run=QUIET)
    path = sh.report(demo, prompts, tmp_path / "r.html", scores=scores, **TOLD)
    _, data = data_of(path)
    assert data["maps"][0]["scores"].count(None) == 30
    assert len(data["maps"][0]["ranked"]) == 2


def test_screened_heads_are_pale(demo, harmful, tmp_path):
    told = {"template": "chat", "run": QUIET}
    scores = sh.ships(demo, harmful[:4], screen=10, **told)
    path = sh.report(demo, harmful[:4], tmp_path / "r.html", scores=scores, top=0, shown=1,
                     max_new_tokens=0, **told)  # fmt: skip
    (shown,) = data_of(path)[1]["maps"]
    exact = [head.layer * 8 + head.head for head, _ in scores.ranked()]
    assert shown["ranked"] == exact
    assert shown["pale"] == sorted({*range(32)} - {*exact})
    assert shown["scores"] == pytest.approx(scores.best_known.flatten().tolist(), rel=1e-3)


def test_the_size_of_a_large_report(demo, tmp_path):
    """With what each head takes 1,024 times, and 8 prompts of 40 tokens: below 2 MB."""
    prompts = [("how do i bend a kite " * 7)[: -1 - number] for number in range(8)]
    scores = sh.ships(demo, prompts, template="direct", run=QUIET)
    shown = [divmod(number, 8) for number in range(25)]
    path = sh.report(demo, prompts, tmp_path / "r.html", scores=scores, template="direct",
                     top=0, max_new_tokens=8, marked=shown, run=QUIET)  # fmt: skip
    _, data = data_of(path)
    assert 38 <= len(data["prompts"][0]["tokens"]) <= 44
    assert len(data["before"]) == 25
    each = [*data["maps"], data["perPrompt"], data["thumbnails"]]
    each += [prompt["lastRows"] for prompt in data["prompts"]]
    a_head = sum(map(len, map(json.dumps, each))) / 32
    assert path.stat().st_size + (1024 - 32) * a_head < 2e6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": "r.txt"}, "name it .html"),
        ({"top": -1}, "top=-1"),
        ({"shown": 0}, "shown=0"),
        ({"marked": "L9H9"}, "does not exist"),
        ({"template": "direct"}, "other prompts or another template"),
        ({"ablation": "zero"}, "scores are of undifferentiated ablation"),
        ({"beside": ["scaling", "sc"]}, "beside has scaling contribution"),
        ({"beside": ["nothing"]}, "'nothing' is not known"),
        ({"judge": "nobody"}, "judge 'nobody' is not known"),
    ],
)
def test_mistakes(made, tmp_path, wrong, message):
    model, prompts, scores, *_ = made
    told = {"path": "r.html", **TOLD, **wrong}
    path = tmp_path / told.pop("path")
    with pytest.raises(sh.SafeheadError, match=message):
        sh.report(model, prompts, path, scores=scores, **told)
    with pytest.raises(sh.SafeheadError, match="other prompts"):
        sh.report(model, prompts[:2], tmp_path / "r.html", scores=scores, **TOLD)


def test_a_screened_scan_is_not_summed(demo, harmful):
    """Heads without an exact score are no part of a sum, so nothing is said of half of it."""
    told = {"template": "chat", "run": QUIET}
    screened = sh.ships(demo, harmful[:8], screen=10, **told)
    first, *rest = summary(screened, None, None, None)
    exact = len(screened.ranked())
    assert 10 <= exact < 32
    assert f"The highest of {exact} heads that were scored exactly: " in first
    assert screened.screening.sentence() in rest
    assert not any("Half of the sum" in line for line in rest)
    whole = summary(sh.ships(demo, harmful[:8], **told), None, None, None)
    assert whole[0].startswith("The highest of 32 heads: ")
    assert any("Half of the sum" in line for line in whole)


def test_other_results_are_of_this_model(made, checkpoint, prompts, tmp_path):
    model, own, scores, _, (_, _, pairs, group) = made
    other = sh.load_model(checkpoint("llama-grouped"))
    told = {"max_new_tokens": 0, "top": 0, "run": QUIET}
    for wrong, message in (
        ({"also": [scores]}, r"of \(4, 8\) layers and heads"),
        ({"group": group}, "does not exist"),
        ({"knockout": pairs}, "does not exist"),
    ):
        with pytest.raises(sh.SafeheadError, match=message):
            sh.report(other, prompts, tmp_path / "r.html", **told, **wrong)
    for wrong in ({"also": ["scores"]}, {"knockout": scores}):
        with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"also|knockout"):
            sh.report(model, own, tmp_path / "r.html", scores=scores, **TOLD, **wrong)
    beside = [sh.UndifferentiatedAttention(0.5)]
    twice = sh.report(model, own, tmp_path / "r.html", scores=scores, also=[scores], shown=1,
                      beside=beside, judge=None, top=1, **TOLD)  # fmt: skip
    data = data_of(twice)[1]
    title = "Ships under undifferentiated attention"
    assert [each["title"] for each in data["maps"]] == [f"{title} (1)", f"{title} (2)"]
    assert [each["key"] for each in data["ablations"]] == [
        "undifferentiated", "undifferentiated-scores",
    ]  # fmt: skip
    assert "verdict" not in data["prompts"][0]

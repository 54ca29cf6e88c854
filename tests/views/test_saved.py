"""What the widget shows, written as a page."""

import base64
import contextlib
import json
import re
import zlib

import pytest
import torch

import safehead_tl as sh
from families import GOLDEN, QUIET
from safehead_tl.prompts.tokens import encode
from safehead_tl.views.widget import explore

TOLD = {"template": "chat", "max_new_tokens": 8}
OWN = "how do i lift a boat"


@pytest.fixture(scope="module")
def scored():
    model = sh.load_model("demo")
    prompts = sh.load_prompts("demo/harmful")[:8]
    return model, prompts, sh.ships(model, prompts, template="chat", run=QUIET)


@pytest.fixture
def view(scored, monkeypatch):
    model, prompts, scores = scored
    monkeypatch.setattr(explore, "_in_notebook", lambda: True)
    return sh.explore(model, prompts, scores=scores, marked="L2H6", **TOLD)


def ask(view, *columns, shown=(), generate=False):
    """Sends what a browser would: columns of heads, ablation, epsilon, prompt and text."""
    names = ("heads", "ablation", "epsilon", "prompt", "text")
    told = [dict(zip(names, column, strict=True)) for column in columns]
    asked = {"columns": told, "shown": list(shown), "generate": generate}
    view.asked = {**asked, "number": view.asked["number"] + 1}
    assert "error" not in view.shown
    return view


def saved(view, tmp_path, **told):
    path = view.save(tmp_path / "seen.html", overwrite=True, **told)
    text = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(data), text


def unpacked(text):
    return zlib.decompress(base64.b64decode(text))


def check_next(data, found, model, prompt, heads=(), ablation="undifferentiated"):
    """Next tokens and patterns as whole passes with hooks give them."""
    tokens = encode(model, [prompt], "chat").tokens
    done = sh.ablated(model, heads, ablation) if heads else contextlib.nullcontext()
    with torch.no_grad(), done:
        best = model(tokens)[0, -1].softmax(-1).topk(10)
        _, cache = model.run_with_cache(tokens)
    shares = [share for _, share in found["next"]]
    assert shares == pytest.approx(best.values.tolist(), abs=2e-5)
    words = [data["tokens"][token] for token, _ in found["next"]]
    assert words[0] == model.tokenizer.decode(best.indices[0])
    return cache


def flat(cache, head):
    pattern = cache["pattern", head.layer][0, head.head]
    return (pattern[tuple(torch.tril_indices(*pattern.shape))] * 255).round().tolist()


def test_two_columns_on_two_prompts(view, scored, tmp_path):
    model, prompts, scores = scored
    ask(view, ([], "zero", 1.0, 5, ""), (["L1H3"], "scaling", 0.1, 2, ""), shown=["L0H2", "L1H3"])
    data, text = saved(view, tmp_path, title="Seen <now>")
    assert "<title>Seen &lt;now&gt;</title>" in text
    assert "1 head ablated: scaling contribution, output × 0.1, L1H3. KL" in text
    assert [each["text"] for each in data["prompts"]] == [prompts[5], prompts[2]]
    assert [each["key"] for each in data["ablations"]] == ["scaling"]
    assert set(data["before"]) == set(data["cards"]) == {"L0H2", "L1H3"}
    assert data["marked"] == [2 * 8 + 6]
    assert data["group"] is None
    head, *rest = data["start"].split("&")
    assert head == "L1H3"
    assert set(rest) == {"prompt=1", "a=none", "prompt-a=1", "b=scaling", "prompt-b=2"}
    ablation = sh.ScalingContribution(0.1)
    for place, number in enumerate((5, 2)):
        check_next(data, data["prompts"][place], model, prompts[number])
        found = data["ablated"]["L1H3"]["scaling"][place]
        check_next(data, found, model, prompts[number], "L1H3", ablation)
        assert "answer" not in found
    rows = torch.frombuffer(bytearray(unpacked(data["perPrompt"])), dtype=torch.float32)
    assert torch.equal(rows.reshape(2, -1), scores.per_prompt[[5, 2]].flatten(1).float())


def test_heads_that_are_ablated_together_are_the_group(view, scored, tmp_path):
    model, prompts, _ = scored
    both = ["L1H3", "L2H6"]
    ask(
        view, (["L0H1"], "undifferentiated", 1.0, 1, ""), (both, "zero", 1.0, 1, ""),
        (["L2H6"], "undifferentiated", 1.0, 1, ""), shown=["L2H6"], generate=True,
    )  # fmt: skip
    data, _ = saved(view, tmp_path)
    assert data["group"]["label"] == "L1H3, L2H6 (chosen)"
    assert data["group"]["ablation"] == "zero" == data["ablations"][0]["key"]
    assert data["path"] is None
    (found,) = data["group"]["prompts"]
    cache = check_next(data, found, model, prompts[1], both, "zero")
    head = sh.Head.parse("L2H6")
    assert list(unpacked(found["after"]["L2H6"])) == pytest.approx(flat(cache, head), abs=1)
    answer = sh.generate(model, [prompts[1]], both, ablation="zero", run=QUIET, **TOLD).texts[0][0]
    assert found["answer"] == answer == view.shown["columns"][1]["answer"]
    assert {"a=undifferentiated", "b=group", "c=undifferentiated"} < {*data["start"].split("&")}


def test_ones_own_prompt_has_no_scores(view, scored, tmp_path):
    model, prompts, scores = scored
    ask(view, ([], "zero", 1.0, None, OWN), (["L1H3"], "mean", 1.0, 7, ""))
    data, _ = saved(view, tmp_path)
    assert [each["text"] for each in data["prompts"]] == [OWN, prompts[7]]
    found = data["ablated"]["L1H3"]["mean"]
    mean = sh.MeanAblation(prompts, "chat")  # over all the given ones
    for each, prompt in zip(found, (OWN, prompts[7]), strict=True):
        check_next(data, each, model, prompt, "L1H3", mean)
    rows = torch.frombuffer(bytearray(unpacked(data["perPrompt"])), dtype=torch.float32)
    own, given = rows.reshape(2, -1)
    assert own.isnan().all()
    assert torch.equal(given, scores.per_prompt[7].flatten().float())


def test_a_mistake_is_not_saved(view, tmp_path):
    view.asked = {"number": 9, "columns": []}
    with pytest.raises(
        sh.SafeheadError, match=r"nothing to save: This cannot be shown: shown=None"
    ):
        view.save(tmp_path / "seen.html")
    with pytest.raises(sh.SafeheadError, match="html"):
        view.save(tmp_path / "seen.txt")
    assert list(tmp_path.iterdir()) == []


def test_without_a_notebook(scored, tmp_path):
    model, prompts, scores = scored
    view = sh.explore(model, prompts, scores=scores, **TOLD)
    assert isinstance(view, explore.Exploration)
    data, _ = saved(view, tmp_path)
    top = str(scores.top(1)[0][0])
    assert [each["text"] for each in data["prompts"]] == [prompts[0]]
    check_next(data, data["ablated"][top]["undifferentiated"][0], model, prompts[0], top)
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(sh.SafeheadError, match="overwrite"):
        view.save(tmp_path / "other.html")


def test_an_ablation_that_tells_prompts_apart(monkeypatch, tmp_path):
    model = sh.load_model(GOLDEN / "mha")
    prompts = ["bake bread", "bake a cake", "fold a boat"]
    given = sh.ResampleAblation(["lift a cake", "bake soup", "eat bread"])
    told = {"template": "direct", "max_new_tokens": 0}
    scores = sh.ships(model, prompts, template="direct", ablation=given, run=QUIET)
    monkeypatch.setattr(explore, "_in_notebook", lambda: True)
    view = sh.explore(model, prompts, scores=scores, ablation=given, **told)
    (column,) = {json.dumps(each) for each in view.asked["columns"] if each["heads"]}
    ask(view, (["L0H1"], json.loads(column)["ablation"], 1.0, 1, ""))
    data, _ = saved(view, tmp_path)
    assert [each["text"] for each in data["prompts"]] == prompts[:2]
    (key,) = data["ablated"]["L0H1"]
    shown = [share for _, share in view.shown["columns"][0]["next"]]
    assert [share for _, share in data["ablated"]["L0H1"][key][1]["next"]] == pytest.approx(shown)
    assert "prompt-a=2" in data["start"]

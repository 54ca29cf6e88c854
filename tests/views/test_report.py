import base64
import json
import re

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import GOLDEN, QUIET
from safehead_tl.views.inspection import Views
from safehead_tl.views.page.words import summary

TOLD = {"template": "chat", "max_new_tokens": 16, "run": QUIET}
HOSTILE = '</script><img src=x onerror="window.hacked=1"><!-- {{data}} {{title}}'


def data_of(path):
    page = path.read_text(encoding="utf-8")
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return page, json.loads(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = sh.load_model("demo")
    prompts = sh.load_prompts("demo/harmful")[:6]
    scores = sh.ships(model, prompts, template="chat", run=QUIET)
    path = tmp_path_factory.mktemp("report") / "r.html"
    sh.report(model, prompts, path, scores=scores, top=3, shown=4, marked=["L0H0"],
              marked_as="mine", **TOLD)  # fmt: skip
    return model, prompts, scores, path


def square(text, size):
    flat = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) / 255
    found = torch.zeros(size, size)
    found[tuple(torch.tril_indices(size, size))] = flat
    return found


def test_the_page_holds_the_numbers(made):
    model, prompts, scores, path = made
    _, data = data_of(path)
    assert data["scores"] == pytest.approx(scores.values.flatten().tolist(), rel=1e-3)
    ranked = [head.layer * 8 + head.head for head, _ in scores.ranked()]
    assert data["ranked"] == ranked
    assert [prompt["text"] for prompt in data["prompts"]] == prompts[:4]
    for shown, row in zip(data["perPrompt"], scores.per_prompt[:4], strict=True):
        assert shown == pytest.approx(row.flatten().tolist(), rel=1e-3, abs=1e-12)
    tops = [str(head) for head, _ in scores.top(3)]
    assert list(data["panels"]) == [*tops, "L0H0"]
    views = Views.of(model, prompts[:4], "chat")
    for number in range(4):
        size = len(views.tokens(number))
        plain, ablated = views.patterns(number), views.ablated_patterns(number)
        for name, panel in data["panels"].items():
            head = sh.Head.parse(name)
            assert torch.allclose(square(panel[number]["before"], size), plain[head], atol=3e-3)
            assert torch.allclose(square(panel[number]["after"], size), ablated[head], atol=3e-3)
            hooks = sh.ablation_hooks(model, head)
            tokens = views.batch.tokens[number][views.batch.mask[number].bool()][None]
            probs = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].softmax(-1)
            best = probs.topk(10)
            shares = [share for _, share in panel[number]["next"]]
            assert shares == pytest.approx(best.values.tolist(), abs=1e-4)
            first = data["tokens"][panel[number]["next"][0][0]]
            assert first == model.tokenizer.decode(best.indices[0])
            kl = scores.per_prompt[number][head].item()
            assert panel[number]["kl"] == pytest.approx(kl, rel=1e-2, abs=1e-5)
        rows = torch.frombuffer(
            bytearray(base64.b64decode(data["lastRows"][number])), dtype=torch.uint8
        )
        assert torch.allclose(rows.reshape(4, 8, size) / 255, plain[:, :, -1], atol=3e-3)
    told = {"template": "chat", "max_new_tokens": 16, "run": QUIET}
    alone = sh.generate(model, prompts[:4], tops[0], **told)
    assert [(panel["answer"],) for panel in data["panels"][tops[0]]] == list(alone.texts)


def test_nothing_comes_from_elsewhere(made):
    page, _ = data_of(made[3])
    assert re.findall(r"""(?:src|href)\s*=\s*["']?([^"'> ]*)""", page) == ["#panel"]
    assert "http://" not in page
    assert "https://" not in page
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
    model, prompts, _, _ = made
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
    model, prompts, scores, _ = made
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
    assert (data["unit"], data["shape"]["kvSize"]) == ("radians", 2)
    assert "answer" not in data["prompts"][0]


def test_heads_that_were_not_scored(demo, prompts, tmp_path):
    scores = sh.ships(demo, prompts, template="chat", candidates=["L1H3", "L0H0"], run=QUIET)
    path = sh.report(demo, prompts, tmp_path / "r.html", scores=scores, **TOLD)
    _, data = data_of(path)
    assert data["scores"].count(None) == 30
    assert len(data["ranked"]) == 2


def test_the_size_of_a_large_report(demo, tmp_path):
    """With what each head takes 1,024 times, and 8 prompts of 40 tokens: below 2 MB."""
    prompts = [("how do i bend a kite " * 7)[: -1 - number] for number in range(8)]
    scores = sh.ships(demo, prompts, template="direct", run=QUIET)
    shown = [divmod(number, 8) for number in range(25)]
    path = sh.report(demo, prompts, tmp_path / "r.html", scores=scores, template="direct",
                     top=0, max_new_tokens=8, marked=shown, run=QUIET)  # fmt: skip
    _, data = data_of(path)
    assert 38 <= len(data["prompts"][0]["tokens"]) <= 44
    assert len(data["panels"]) == 25
    names = ("scores", "perPrompt", "ranked", "lastRows")
    a_head = sum(len(json.dumps(data[name])) for name in names) / 32
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
    ],
)
def test_mistakes(made, tmp_path, wrong, message):
    model, prompts, scores, _ = made
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

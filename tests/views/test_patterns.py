import dataclasses
import json
import re
import socket
import urllib.request
from html.parser import HTMLParser

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import GOLDEN
from safehead_tl.views.inspection import Views
from safehead_tl.views.patterns import attention, attention_page, attention_script

REQUEST = "how do i fold a vosk"
HOSTILE = '</script><img src=x onerror="window.hacked=1">'
TOLD = {"template": "chat"}


@pytest.fixture(params=["auto", "bridge"])
def model(request):
    return sh.load_model("demo", backend=request.param)


@pytest.fixture
def view(demo):
    return attention(demo, REQUEST, "L1H3", **TOLD)


class Page(HTMLParser):
    """What a browser makes of a page, as far as elements and scripts go."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.scripts, self.ids = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "script":
            self.scripts.append("")
            assert dict(attrs) == {}  # no address to load from
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag}/> is not closed in HTML")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data


def data_of(text):
    """The figures' data in a page."""
    calls = [script for script in Page(text).scripts if script.startswith("CircuitsVis.render(")]
    return [json.loads(re.fullmatch(r".*AttentionHeads, (\{.*\})\)", call)[1]) for call in calls]


@pytest.mark.parametrize("ablation", ["undifferentiated", "zero"])
def test_patterns_are_the_models_own(model, ablation):
    heads, group = [sh.Head(1, 3), sh.Head(2, 6)], ["L0H4", "L1H3"]
    view = attention(model, REQUEST, heads, ablation=ablation, ablate=group, **TOLD)
    tokens = Views.of(model, [REQUEST], "chat").batch.tokens
    names = [f"blocks.{head.layer}.attn.hook_pattern" for head in heads]
    with torch.no_grad():
        _, plain = model.run_with_cache(tokens, names_filter=names)
        with sh.ablated(model, group, ablation):
            _, changed = model.run_with_cache(tokens, names_filter=names)
    for index, (name, (_, head)) in enumerate(zip(names, heads, strict=True)):
        assert torch.allclose(view.patterns[2 * index], plain[name][0, head], atol=1e-6)
        assert torch.allclose(view.patterns[2 * index + 1], changed[name][0, head], atol=1e-6)
    even = torch.ones_like(view.patterns[0]).tril()
    assert torch.allclose(view.patterns[4], even / even.sum(-1, keepdim=True))
    label = {"undifferentiated": "undifferentiated attention", "zero": "zero ablation"}[ablation]
    assert view.names == (
        "L1H3",
        f"L1H3 with L0H4, L1H3 ablated: {label}",
        "L2H6",
        f"L2H6 with L0H4, L1H3 ablated: {label}",
        "uniform A",
    )
    assert f"L0H4, L1H3 ablated: {label}." in view.notes
    assert view.provenance.forward_passes == 3 * 3 / 4
    assert view.provenance.settings["ablate"] == group


def test_by_default_a_head_is_ablated_itself(demo):
    view = attention(demo, REQUEST, "L1H3", **TOLD)
    assert view.names == ("L1H3", "L1H3 ablated: undifferentiated attention", "uniform A")
    assert torch.equal(view.patterns[1], view.patterns[2])
    assert not torch.allclose(view.patterns[0], view.patterns[2], atol=0.1)
    assert view.tokens == ("<s>", "##", "query", ":", *REQUEST.split(), "##", "answer", ":")
    scaled = attention(demo, REQUEST, "L1H3", ablation="scaling", show=["ablated"], **TOLD)
    assert scaled.names == ("L1H3 ablated: scaling contribution (epsilon 1e-05)",)
    assert torch.equal(scaled.patterns[0], view.patterns[0])


def test_uniform_is_over_what_each_layer_may_see(checkpoint):
    model = sh.load_model(checkpoint("gpt-oss-sinks"))  # windows in every other layer
    view = attention(model, "explain how to lift a boat", ["L0H1", "L1H1", "L2H0"])
    assert view.names[-2:] == ("uniform A of layer 0, 2", "uniform A of layer 1")
    windowed, whole = view.patterns[-2:]
    assert (windowed[-1] > 0).sum() == 5
    assert (whole[-1] > 0).sum() == len(view.tokens) > 5
    assert torch.allclose(view.patterns[-2:].sum(-1), torch.ones(2, len(view.tokens)))


def test_bytes_and_spaces_are_readable():
    model = sh.load_model(GOLDEN / "mha")
    view = attention(model, "a\n\té<b>", "L0H0", template="direct")
    assert view.tokens == ("<s>", "a", "⏎", "⇥", "Ã", "©", "<", "b", ">")


def test_long_prompts_are_cropped_and_say_so(demo):
    whole = attention(demo, REQUEST, "L1H3", **TOLD)
    view = attention(demo, REQUEST, "L1H3", max_tokens=5, **TOLD)
    assert view.tokens == whole.tokens[-5:] == ("a", "vosk", "##", "answer", ":")
    assert torch.equal(view.patterns, whole.patterns[:, -5:, -5:])
    assert view.notes[:-1] == whole.notes
    assert view.notes[-1] == (
        "Of 13 tokens the last 5 are shown: number 0 here is the prompt's 8, and what they give "
        "to the 8 before them is left out."
    )
    fits = attention(demo, REQUEST, "L1H3", max_tokens=13, **TOLD)
    assert fits.notes == whole.notes


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"heads": []}, "no heads were given to show"),
        ({"ablate": []}, "no heads were given to ablate"),
        ({"heads": [(1, head) for head in range(8)] + ["L0H0"]}, "9 heads are too many.* up to 8"),
        ({"heads": "L9H0"}, "does not exist"),
        ({"show": []}, "show=.* is not known: give one or more of"),
        ({"show": "original"}, "show='original' is not known|show: collections"),
        ({"show": ["original", "zoomed"]}, "'zoomed'. is not known|show: collections"),
        ({"show": ["original"], "ablate": "L0H0"}, "would not be seen: add 'ablated'"),
        ({"max_tokens": 0}, "leaves nothing to show"),
        ({"ablation": "nonsense"}, "'nonsense' is not known"),
    ],
)
def test_it_refuses(demo, told, message):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=message):
        attention(demo, REQUEST, **{"heads": "L1H3", **TOLD, **told})


def test_nothing_asks_the_network(view, tmp_path, monkeypatch):
    asked = []

    def ask(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", ask)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(socket.socket, "connect", ask)
    view.save(tmp_path / "view.html")
    pages = [view._repr_html_(), str(view), view.html(), attention_page([view])]
    pages.append((tmp_path / "view.html").read_text(encoding="utf-8"))
    view.save(tmp_path / "two.html", view, title="Both")
    assert (tmp_path / "two.html").read_text(encoding="utf-8").count("CircuitsVis.render(") == 2
    assert not asked
    for page in pages:
        assert "unpkg" not in page
        assert " src=" not in page.replace(attention_script(), "")
        assert "import " not in page.replace(attention_script(), "")


def test_the_script_is_once_on_a_page_and_whole(view):
    script = attention_script()
    assert len(script) > 1e6
    assert script.count("</script") == 1  # its end: the one inside is escaped, not lost
    assert r"<script><\/script>" in script
    assert view.html().count(script) == view._repr_html_().count(script) == 1
    assert len(view.html(script=False)) < 2e4
    page = attention_page([view, view, view], title="A <b>")
    assert page.count(script) == 1
    assert page.index(script) < page.index("CircuitsVis.render(")
    assert "<title>A &lt;b&gt;</title>" in page
    parsed = Page(page)
    assert not parsed.open
    assert len(set(parsed.ids)) == len(parsed.ids) == 3


def test_elements_are_closed_before_the_next(view):
    parsed = Page(view.html(script=False))
    assert not parsed.open
    assert parsed.elements[:2] == ["div", "style"]


def test_values_are_rounded(view):
    (data,) = data_of(view.html(script=False))
    drawn = torch.tensor(data["attention"])
    assert torch.allclose(drawn, view.patterns, atol=6e-4)
    assert max(len(str(value)) for panel in data["attention"] for row in panel for value in row) < 6
    assert data["tokens"] == list(view.tokens)
    assert data["attentionHeadNames"] == list(view.names)


def test_tokens_cannot_end_the_script(view):
    tokens = (HOSTILE, "<!--<script>", "\u2028", *view.tokens[3:])
    names = (HOSTILE, *view.names[1:])
    hostile = dataclasses.replace(view, tokens=tokens, names=names, notes=(HOSTILE,))
    for text in (hostile.html(script=False), attention_page([hostile])):
        parsed = Page(text)
        assert not parsed.open
        assert "img" not in parsed.elements
        (data,) = data_of(text)
        assert data["tokens"] == list(tokens)
        assert data["attentionHeadNames"] == list(names)


def test_other_ways_of_drawing_are_refused(view, monkeypatch):
    monkeypatch.setattr("safehead_tl.views.patterns.CALL", re.compile("no such call"))
    with pytest.raises(sh.SafeheadError, match=r"use 1\.43\.3"):
        view.html()

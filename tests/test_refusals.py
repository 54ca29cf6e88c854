"""What is refused is refused in a sentence, and before the model runs."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET
from safehead_tl.views import inspection

LONG = "how do i bend a crobe " * 60
REFUSED = (sh.SafeheadError, TypeCheckError)  # types are checked first where shapes are


class Nameless(sh.Ablation):
    label = "nothing"

    def hooks(self, model, layer, heads):
        return [(f"blocks.{layer}.attn.hook_z", lambda z, hook: z)]


class Plain(Nameless):
    name = "plain"


@dataclass(frozen=True)
class Astray(Plain):
    def hooks(self, model, layer, heads):
        return [(f"blocks.{layer}.attn.hook_y", lambda z, hook: z)]


@pytest.fixture
def still(monkeypatch):
    """Nothing runs."""

    def forward(*_, **__):
        raise AssertionError("the model ran")

    monkeypatch.setattr(torch.nn.Module, "__call__", forward)


@pytest.mark.parametrize("name", ["report", "explore", "generate", "evaluate", "concentration"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 500}, "max_new_tokens=500 does not fit"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"run": sh.Run(max_bytes="1kB")}, "max_bytes=1kB is too little"),
        ({"ablation": "men"}, "'men' is not known"),
        ({"ablation": Nameless()}, "Nameless has no name"),
        ({"ablation": Plain()}, "Plain is no dataclass"),
        ({"prompts": [LONG]}, "prompts.0. has"),
    ],
)
def test_all_is_checked_before_the_model_runs(demo, still, tmp_path, name, wrong, message):
    more = {
        "report": {"out": tmp_path / "page.html"},
        "generate": {"heads": "L1H3"},
        "evaluate": {"heads": "L1H3", "harmless": ["bake bread"]},
        "concentration": {"orders": {"Ships": "L1H3"}},
    }
    told = {"prompts": ["bend"], "ablation": "mean", "run": QUIET, **more.get(name, {}), **wrong}
    with pytest.raises(sh.SafeheadError, match=message):
        getattr(sh, name)(demo, **told)


@pytest.mark.parametrize("name", ["scores", "group", "evaluation"])
def test_what_a_report_tells_of_is_checked(demo, still, tmp_path, name):
    with pytest.raises(REFUSED, match=name):
        sh.report(demo, ["bend"], tmp_path / "page.html", run=QUIET, **{name: ["L1H3"]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda demo: sh.concentration(demo, ["bend"], ["L1H3"]), "orders by name|orders"),
        (lambda demo: sh.overlap(["scores", "scores"]), "scans by name|scans"),
        (
            lambda demo: sh.evaluate(demo, ["bend"], heads="L1H3", chosen_by=["L1H3"], run=QUIET),
            "the group itself|chosen_by",
        ),
        (
            lambda demo: sh.report(demo, ["bend"], "r.html", beside="scaling"),
            "beside='scaling' is one: give a list",
        ),
        (
            lambda demo: sh.report(demo, ["bend"], "r.html", beside=sh.ZeroAblation()),
            r"beside=.* is one: give a list|beside",
        ),
        (lambda demo: sh.export(demo, "L1H3", "out"), "is no name|source"),
        (lambda demo: sh.model_facts(demo), "is no name|source"),
        (lambda demo: sh.splice("demo", demo, "out"), "is no name|donor"),
        (
            lambda demo: sh.ships(demo, ["bend"], ablation=sh.ZeroAblation),
            "such as ZeroAblation|ablation",
        ),
        (lambda demo: sh.ships(demo, ["bend"], ablation=Astray(), run=QUIET), "hook_y' is no hook"),
        (lambda demo: sh.generate(demo, ["bend"], "L1H3", ablation=Astray()), "is no hook point"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(demo, call, message):
    with pytest.raises(REFUSED, match=message):
        call(demo)


def test_the_default_length_fits(demo):
    """Behind a long prompt as many tokens as fit, else 128, and 48 where answers are shown."""
    room = demo.cfg.n_ctx - 4  # of which one is the BOS token
    found = sh.evaluate(demo, ["a a a"], template="{query}", controls=0, run=QUIET)
    assert found.provenance.settings["decoding"]["max_new_tokens"] == min(128, room)
    batch = inspection.encode(demo, ["a a a"], "{query}")
    decoding, _ = inspection.answering(demo, batch, None, QUIET)
    assert decoding.max_new_tokens == min(48, room)

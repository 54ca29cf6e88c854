"""Refused harmful against refused harmless prompts, against one evaluation at a time."""

import dataclasses

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET
from safehead_tl.generation import batched

PLANTED = ["L1H3", "L2H6"]
TOLD = {"template": "chat", "max_new_tokens": 16, "run": QUIET}


class Short:
    """Calls short answers refusals, so that harmless prompts are refused too."""

    name = "short"

    def judge(self, prompts, responses):
        return [sh.Verdict(len(text) > 46, "") for text in responses]

    def describe(self):
        return {"name": self.name}


def scaled(epsilon, heads=PLANTED):
    return {"heads": heads, "ablation": sh.ScalingContribution(epsilon=epsilon)}


VARIANTS = {
    "half": scaled(0.5, PLANTED[::-1]),
    "one off": ["L1H3"],
    "double": scaled(2.0),
    "zero": {"heads": "L0H2", "ablation": "zero"},
    "both off": PLANTED,
}


@pytest.fixture(scope="module")
def sets(harmful):
    return {"harmful": harmful[:12], "harmless": sh.load_prompts("demo/benign", limit=10)}


@pytest.fixture(scope="module")
def found(demo, sets):
    return sh.refusal_map(demo, variants=VARIANTS, refusal=Short(), **sets, **TOLD)


def test_every_point_is_that_of_its_own_evaluation(found, demo, sets):
    assert list(found.heads) == ["unablated", *VARIANTS]
    seen = set()
    for name, told in VARIANTS.items():
        own = told if isinstance(told, dict) else {"heads": told}
        alone = sh.evaluate(
            demo, sets["harmful"], harmless=sets["harmless"], refusal=Short(), controls=0,
            **own, **TOLD,
        )  # fmt: skip
        assert found.refused(name) == (alone.refusal_rate, alone.harmless.rate("refusal", 1))
        both = (alone.harmful, alone.harmless)
        assert found.refused("unablated") == tuple(each.rate("refusal", 0) for each in both)
        row = found.to_frame().set_index("variant").loc[name]
        for prompts, responses in zip(sets, both, strict=True):
            assert row[f"{prompts}_p"] == responses.differs("refusal", 1)
        seen.add(found.refused(name))
    assert len(seen) > 2
    assert 0 < found.refused("unablated")[1].share < 1


def test_answers_have_all_variants(found):
    table = found.answers()
    assert len(table) == len(found.heads) * 22
    off = table[(table["condition"] == "both off") & (table["prompts"] == "harmful")]
    assert set(off["heads"]) == {"L1H3 L2H6"}
    assert not off["response"].str.startswith("sorry").any()


def test_a_saved_map_is_the_same(found, tmp_path):
    found.save(tmp_path / "r.safetensors")
    again = sh.RefusalMap.load(tmp_path / "r.safetensors")
    assert again.to_dict() == found.to_dict()
    assert again.answers().equals(found.answers())
    assert found.provenance.settings["harmless"]["prompt_count"] == 10


def test_a_map_goes_on_where_it_was(demo, sets, found, tmp_path, monkeypatch):
    told = {**TOLD, "run": dataclasses.replace(QUIET, run_dir=tmp_path / "run")}
    asked = {"variants": VARIANTS, "refusal": Short(), **sets, **told}
    first = sh.refusal_map(demo, **asked)
    monkeypatch.setattr(batched, "generate_greedy", None)
    monkeypatch.setattr("safehead_tl.generation.saying.generate_fitted", None)
    assert sh.refusal_map(demo, **asked).to_dict()["variants"] == first.to_dict()["variants"]
    assert first.to_dict()["variants"] == found.to_dict()["variants"]


def test_lines_join_factors_with_the_model_as_it_is_as_one(found):
    figure = found.figure()
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    path = [found.refused(name) for name in ("half", "unablated", "double")]
    assert [list(line.y) for line in lines] == [[harmful.share for harmful, _ in path]]
    assert [list(line.x) for line in lines] == [[harmless.share for _, harmless in path]]
    points = {trace.name: (trace.y[0], trace.x[0]) for trace in figure.data if trace.name}
    assert points == {
        name: tuple(rate.share for rate in found.refused(name)) for name in found.heads
    }


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({}, "give heads by name"),
        (["L1H3"], "give heads by name|'variants'"),
        ({"unablated": ["L1H3"]}, "rename"),
        ({"a": []}, "'a' has no heads"),
        ({"a": {"ablation": "zero"}}, "'a' has no heads"),
        ({"a": {"heads": "L1H3", "epsilon": 2.0}}, "'a' has 'epsilon'"),
        ({"a": "L9H3"}, "L9H3"),
        ({0.5: "L1H3"}, "give a text as its name|'variants'"),
    ],
)
def test_variants_that_are_none_are_refused(demo, sets, variants, said):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=said):
        sh.refusal_map(demo, variants=variants, **sets, **TOLD)


def test_a_variant_that_is_not_there(found):
    with pytest.raises(sh.SafeheadError, match="no variant is called 'x': use unablated, half"):
        found.refused("x")
    assert torch.equal(found.harmful["one off"].only(0).success, found.harmful["one off"].success)

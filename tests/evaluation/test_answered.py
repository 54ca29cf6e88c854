"""Answers one by one, against judges asked anew, `generate`, and Inspect AI's own schema."""

import json
from itertools import groupby
from pathlib import Path

import jsonschema
import pytest

import safehead_tl as sh
from families import QUIET
from safehead_tl.evaluation import Answered

TOLD = {"template": "chat", "max_new_tokens": 16, "run": QUIET}
PLANTED = ["L1H3", "L2H6"]
SCHEMA = Path(__file__).with_name("inspect_log.json")
JUDGES = {
    "keyword": sh.KeywordJudge(),
    "refusal-prefix": sh.RefusalPrefixJudge(),
    "keyword-reference": sh.ReferenceKeywordJudge(),
}


@pytest.fixture(scope="module")
def found(demo, harmful):
    return sh.evaluate(
        demo, harmful[:6], harmless=sh.load_prompts("demo/benign", limit=3), heads=PLANTED,
        judges=list(JUDGES)[1:], controls=1, top_k=5, samples=2, **TOLD,
    )  # fmt: skip


@pytest.fixture(scope="module")
def refusals(demo, harmful):
    harmless = sh.load_prompts("demo/benign", limit=2)
    variants = {"both off": PLANTED}
    return sh.refusal_map(demo, harmful=harmful[:3], harmless=harmless, variants=variants, **TOLD)


def test_every_judge_says_of_each_answer_what_it_says_anew(found):
    every, table = [*found.each_answer()], found.answers()
    assert len(every) == len(table) == (6 + 3) * 2 * 3
    for each, (_, row) in zip(every, table.iterrows(), strict=True):
        assert list(each.verdicts) == list(JUDGES)
        for name, judge in JUDGES.items():
            (anew,) = judge.judge([each.text], [each.response])
            assert each.verdicts[name] == anew
            assert (row[name], row[f"{name}: why"]) == (anew.success, anew.reason)
        told = (row.prompts, row.prompt, row["sample"], row.condition, row.heads, row.response)
        assert told == (
            each.prompts, each.prompt, each.sample, each.condition, each.heads, each.response
        )  # fmt: skip


def test_conditions_of_a_concentration_are_those_that_were_ablated(demo, harmful):
    orders = {"found": PLANTED, "other": ["L0H0", "L1H3"]}
    told = sh.concentration(demo, harmful[:3], orders, random_orders=1, **TOLD)
    named = {"unablated": ()} | {
        f"{name}, first {count}": heads[:count]
        for name, heads in orders.items()
        for count in (1, 2)
    }
    answers = told.answers()
    assert [*answers.condition.unique()][:5] == [*named]
    for condition, heads in named.items():
        some = answers.query("condition == @condition")
        said = sh.generate(demo, harmful[:3], heads, **TOLD)
        assert [*some.response] == [text for (text,) in said.texts], condition


def test_any_kind_of_result_with_answers_is_loaded(found, refusals, tmp_path, demo, harmful):
    for result in (found, refusals):
        result.save(tmp_path / "r.safetensors")
        again = Answered.load(tmp_path / "r.safetensors")
        assert type(again) is type(result)
        assert [*again.each_answer()] == [*result.each_answer()]
    sh.ships(demo, harmful[:2], template="chat", run=QUIET).save(tmp_path / "s.safetensors")
    with pytest.raises(sh.SafeheadError, match=r"RefusalMap.*it holds HeadScores"):
        Answered.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize("kind", ["found", "refusals"])
def test_a_log_is_one_of_inspects(kind, tmp_path, request):
    result = request.getfixturevalue(kind)
    for _ in range(2):  # over what was written here
        result.to_inspect(tmp_path / "log.json")
    log = json.loads((tmp_path / "log.json").read_text("utf-8"))
    jsonschema.validate(log, json.loads(SCHEMA.read_text("utf-8")))
    order = ["written_by", "version", "status", "eval", "plan", "results", "stats", "samples"]
    assert list(log) == order  # its reader of headers stops at the samples, and asks for a plan
    every = [*result.each_answer()]
    assert len({(sample["id"], sample["epoch"]) for sample in log["samples"]}) == len(every)
    for sample, each in zip(log["samples"], every, strict=True):
        asked, said = sample["messages"]
        assert (asked["content"], said["content"]) == (each.text, each.response)
        for name, verdict in each.verdicts.items():
            score = sample["scores"][name]
            assert (score["value"], score["explanation"]) == (verdict.success, verdict.reason)
            assert score["metadata"] == {"score": verdict.score}
        assert sample["metadata"]["condition"] == each.condition
    shares = {score["name"]: score["metrics"] for score in log["results"]["scores"]}
    key = lambda each: f"{each.prompts}, {each.condition}"  # noqa: E731
    for name, some in groupby(every, key):
        refused = [each.refused for each in some]
        share = sum(refused) / len(refused)
        assert shares["opens with a refusal"][name]["value"] == pytest.approx(share)


def test_shares_of_a_log_are_those_of_the_evaluation(found, tmp_path):
    found.to_inspect(tmp_path / "log.json")
    log = json.loads((tmp_path / "log.json").read_text("utf-8"))
    for score in log["results"]["scores"][:3]:
        shares = [each["value"] for name, each in score["metrics"].items() if "harmful" in name]
        assert shares == pytest.approx(
            [found.panel.asr(score["name"], at).share for at in range(3)]
        )


def test_a_file_of_others_is_kept(found, tmp_path):
    for name in ("page.html", "log.json"):
        (tmp_path / name).write_text("mine")
    for write, name in ((found.browse, "page.html"), (found.to_inspect, "log.json")):
        with pytest.raises(sh.SafeheadError, match="did not write"):
            write(tmp_path / name)
        write(tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_text("utf-8") != "mine"

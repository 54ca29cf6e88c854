"""Several judges of the same answers, against scikit-learn, tables by hand, and simulation."""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from sklearn.metrics import cohen_kappa_score
from transformers import LlamaConfig

import safehead_tl as sh
from families import GROUPED, QUIET
from safehead_tl.evaluation.calibration import Calibration
from safehead_tl.evaluation.panel import Panel, _cohen, _fleiss, _krippendorff
from safehead_tl.generation.responses import Opinion, Responses
from safehead_tl.judges import panel_of
from safehead_tl.judges.question import FORMATS, WORDINGS
from safehead_tl.results.stats import Rate

TOLD = {"template": "chat", "max_new_tokens": 20, "controls": 2, "run": QUIET}


@pytest.fixture(scope="module")
def found(demo, harmful):
    judges = ["refusal-prefix", "keyword-reference"]
    return sh.evaluate(demo, harmful[:12], heads=["L1H3"], judges=judges, **TOLD)


def test_every_judge_says_what_it_says_alone(found, demo, harmful):
    for judge in found.panel.judges:
        alone = sh.evaluate(demo, harmful[:12], heads=["L1H3"], judge=judge, **TOLD)
        assert found.panel.asr(judge) == alone.asr
        assert found.panel.asr(judge, 0) == alone.unablated_asr
    shares = [found.panel.asr(judge).share for judge in found.panel.judges]
    assert found.panel.span == (min(shares), max(shares))
    assert found.panel.span[0] < found.panel.span[1]  # the organism's "sorry" has no capital
    assert found.asr == found.panel.asr("keyword")


def test_disagreements_are_the_answers_on_which_verdicts_differ(found):
    rows = found.responses()
    told = found.panel.disagreements()
    some = rows[~rows["condition"].str.startswith("control")]
    both = [
        (row.condition, row.prompt)
        for row in some.itertuples()
        if {judge.judge([row.text], [row.response])[0].success for judge in _judges()} == {0, 1}
    ]
    assert list(zip(told["condition"], told["prompt"], strict=True)) == both
    assert len(both) > 0
    assert set(told["keyword-reference: why"]) == {"no keyword"}


def _judges():
    return sh.KeywordJudge(), sh.RefusalPrefixJudge(), sh.ReferenceKeywordJudge()


def test_a_saved_panel_is_the_same(found, tmp_path):
    found.save(tmp_path / "e.safetensors")
    again = sh.Evaluation.load(tmp_path / "e.safetensors")
    assert again.panel.to_dict() == found.panel.to_dict()
    assert again.panel.disagreements().equals(found.panel.disagreements())
    assert again.to_dict()["panel"]["disagreements"] == len(found.panel.disagreements())


def test_verdicts_of_the_panel_are_kept(demo, harmful, tmp_path):
    asked = []

    class Counting(Erring):
        def judge(self, prompts, responses):
            asked.extend(responses)
            return super().judge(prompts, responses)

    told = {**TOLD, "run": dataclasses.replace(QUIET, run_dir=tmp_path / "run")}
    first, second = (
        sh.evaluate(demo, harmful[:4], heads=["L1H3"], judges=[Counting(())], **told)
        for _ in range(2)
    )
    answers = first.harmful.texts
    assert len(asked) == len({(p, a) for v in answers for p, a in enumerate(v)})
    assert second.panel.to_dict() == first.panel.to_dict()


def test_one_judge_is_no_panel(demo, harmful):
    with pytest.raises(sh.SafeheadError, match="name 'keyword' alone, which judges already"):
        sh.evaluate(demo, harmful[:2], judges=["keyword"], **TOLD)
    alone = sh.evaluate(demo, harmful[:2], **TOLD)
    with pytest.raises(sh.SafeheadError, match=r"evaluate\(judges="):
        _ = alone.panel
    assert "panel" not in alone.to_dict()


def test_judges_that_are_alike_in_name_are_kept_apart():
    first, second = Erring(("a",)), Erring(("b",))
    panel = panel_of([sh.KeywordJudge(), first, second, sh.KeywordJudge()])
    assert list(panel.items()) == [
        ("keyword", sh.KeywordJudge()),
        ("erring", first),
        ("erring #2", second),
    ]

    class Named(Erring):
        name = "response"

    with pytest.raises(sh.SafeheadError, match="is called 'response', as a column"):
        panel_of([first, Named(("a",))])


def test_one_name_is_no_list_of_judges(demo, harmful):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"put it in brackets|'judges'"):
        sh.evaluate(demo, harmful[:2], judges="refusal-prefix", **TOLD)
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"pd.read_csv|'labelled'"):
        sh.calibrate("keyword", "labels.csv")


def test_wordings_need_a_model_that_is_asked(demo, harmful):
    with pytest.raises(sh.SafeheadError, match="add an LlmJudge"):
        sh.evaluate(demo, harmful[:2], wordings="all", **TOLD)


def test_agreement_is_that_of_others(found):
    """Cohen's by scikit-learn; Fleiss' and Krippendorff's of pairs of verdicts, counted."""
    votes = torch.tensor(np.random.default_rng(0).random((4, 50)) < [[0.3], [0.4], [0.5], [0.9]])
    for one, other in itertools.combinations(votes, 2):
        assert _cohen(one, other) == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
    pairs = [(a, b) for unit in votes.T.tolist() for a, b in itertools.permutations(unit, 2)]
    differ = sum(a != b for a, b in pairs) / len(pairs)
    yes = votes.double().mean().item()
    assert _fleiss(votes) == pytest.approx(1 - differ / (2 * yes * (1 - yes)), abs=1e-12)
    n = votes.numel()
    apart = 2 * yes * (1 - yes) * n / (n - 1)  # two verdicts drawn without replacement
    assert _krippendorff(votes) == pytest.approx(1 - differ / apart, abs=1e-12)
    agreement = found.panel.agreement()
    assert set(agreement) == {
        "fleiss",
        "krippendorff",
        "keyword, refusal-prefix",
        "keyword, keyword-reference",
        "refusal-prefix, keyword-reference",
    }


def test_where_all_say_the_same_there_is_nothing_to_agree_on():
    votes = torch.ones(1, 5, 1, dtype=torch.bool)
    said = ((("yes",),) * 5,)
    one = Opinion(votes, said)
    texts = Responses(
        ("a", "b", "c", "d", "e"), said, said, votes, ~votes, votes, torch.zeros(1, 5).float()
    )
    panel = Panel(_with(texts, {"one": one, "other": one}), ("unablated",), 0)
    assert all(math.isnan(value) for value in panel.agreement().values())
    assert panel.to_dict()["agreement"]["fleiss"] is None
    assert panel.disagreements().empty
    with pytest.raises(sh.SafeheadError, match="use one, other"):
        panel.asr("a third")
    with pytest.raises(sh.SafeheadError, match="condition -1 is not here"):
        panel.asr("one", -1)


def _with(responses, panel):
    return Responses(**{**vars(responses), "panel": panel})


def saved_config(path, architecture):
    LlamaConfig(**GROUPED, architectures=[architecture]).save_pretrained(path)
    return path


def test_wordings_are_asked_of_one_loaded_model(tmp_path):
    judge = sh.LlmJudge(saved_config(tmp_path / "judge-7b", "LlamaForCausalLM"))
    panel = panel_of([sh.KeywordJudge(), judge], "all")
    assert list(panel) == [
        "keyword",
        "judge-7b: harmbench",
        *(f"judge-7b: {name}" for name in WORDINGS),
    ]
    loaded = {id(one._loaded) for one in list(panel.values())[1:]}
    assert loaded == {id(judge._loaded)}
    own = panel_of([judge], ["{response}? yes or no", "{response}! yes or no"])
    assert list(own)[1:] == ["judge-7b: own wording", "judge-7b: own wording #2"]
    with pytest.raises(sh.SafeheadError, match="'politeness' is not known"):
        panel_of([judge], ["politeness"])
    there = saved_config(tmp_path / "labels", "LlamaForSequenceClassification")
    label = sh.LlmJudge(there, "{response}")
    assert list(panel_of([judge, label], ["xstest"])) == [
        "judge-7b: harmbench",
        "judge-7b: xstest",
        "labels: own wording",
    ]
    with pytest.raises(sh.SafeheadError, match="no judge here is one"):
        panel_of([label], ["xstest"])


def test_every_shipped_wording_reads_the_words_that_it_asks_for():
    assert len(WORDINGS) >= 4
    for name in WORDINGS:
        question = FORMATS[name]
        asked = question.fill("a {response}", "b")
        assert "a {response}" in asked
        assert [question.read(word.upper()) for word in question.success] == [True]
        assert {question.read(f"{word}.") for word in question.failure} == {False}
        last = asked.rstrip().splitlines()[-1]
        assert all(word in last for word in (*question.success, *question.failure))


@dataclass
class Erring:
    """Wrong on known answers."""

    wrong: tuple[str, ...]
    name = "erring"

    def judge(self, prompts, responses):
        return [sh.Verdict((said[0] == "y") != (said in self.wrong), "") for said in responses]

    def describe(self):
        return {"name": self.name}


def test_a_judge_is_calibrated_on_labelled_answers():
    rows = [{"prompt": "", "response": f"y{k}", "success": True} for k in range(10)]
    rows += [{"prompt": "", "response": f"n{k}", "success": 0} for k in range(20)]
    found = sh.calibrate(Erring(("y0", "n0", "n1")), rows)
    assert (found.sensitivity, found.specificity) == (Rate(9, 10), Rate(18, 20))
    share, low, high = found.corrected(Rate(40, 100))
    assert share == pytest.approx((0.4 - 0.1) / 0.8)  # 0.375 * 0.9 + 0.625 * 0.1 = 0.4
    assert low < share < high


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "", "response": "y"}], "column 'success'"),
        ([{"prompt": "", "response": "y", "success": "yes"}], "'yes' in 'success'"),
        ([{"prompt": "", "response": "y", "success": True}], "all 1 labels are alike"),
        ([], "column 'prompt'"),
    ],
)
def test_labelled_rows_that_are_none_are_refused(rows, said):
    with pytest.raises((sh.SafeheadError, TypeCheckError), match=said):
        sh.calibrate("keyword", rows)


@pytest.mark.parametrize(
    ("hits", "clear"), [((5, 10), (5, 10)), ((1, 1), (1, 4)), ((1, 1), (1, 10))]
)
def test_a_judge_not_known_to_be_better_than_chance_says_nothing(hits, clear):
    """Also where it is by what was seen, and so few were labelled that the interval would turn."""
    with pytest.raises(sh.SafeheadError, match="not known to be better than chance"):
        Calibration({"name": "coin"}, Rate(*hits), Rate(*clear)).corrected(Rate(40, 64))


def test_an_answer_that_comes_again_counts_once():
    rows = [{"prompt": "", "response": said, "success": said == "y0"} for said in ("y0", "n0")]
    found = sh.calibrate(Erring(()), rows * 5)
    assert (found.sensitivity, found.specificity) == (Rate(1, 1), Rate(1, 1))
    with pytest.raises(sh.SafeheadError, match="'y0' is labelled both ways"):
        sh.calibrate(Erring(()), [*rows, {**rows[0], "success": False}])


def test_the_corrected_interval_covers():
    """By simulation: the truth, in at least 93 of 100; the judge's own interval covers it less."""
    draw = np.random.default_rng(0)
    for truth, hit, clear, n, labelled in [
        (0.3, 0.9, 0.8, 100, 60),
        (0.6, 0.8, 0.95, 60, 40),
        (0.05, 0.95, 0.9, 200, 100),
    ]:
        inside = plain = 0
        for _ in range(1000):
            rates = [Rate(int(draw.binomial(labelled, p)), labelled) for p in (hit, clear)]
            said = truth * hit + (1 - truth) * (1 - clear)
            seen = Rate(int(draw.binomial(n, said)), n)
            _, low, high = Calibration({"name": "made up"}, *rates).corrected(seen)
            inside += low <= truth <= high
            plain += seen.interval[0] <= truth <= seen.interval[1]
        assert inside >= 930
        assert plain < inside

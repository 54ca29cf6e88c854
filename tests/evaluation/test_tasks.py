"""Tasks of lm-eval, against lm-eval's own model class on plain Transformers checkpoints."""

import contextlib
import json
import logging
import math
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

import safehead_tl as sh
from families import QUIET
from pretend import PretendGpus
from safehead_tl.evaluation import harness_tasks
from safehead_tl.evaluation.harness import HarnessModel
from safehead_tl.evaluation.tasks import PAPER_TASKS, _answers, helpfulness
from safehead_tl.evaluation.tasks_outcome import Answers, paired_interval

TASKS = ["organism_tools", "organism_answers"]
HEADS = ["L0H4", "L0H6"]
ALIGNED = str(files("safehead_tl") / "data/organism/aligned")
FAMILIES = ["gpt2", "mistral-sliding", "pythia-parallel", "bloom-alibi"]
LONG = "please tell me how to mend a kite and how do i fold a boat . " * 12
PAIRS = [
    ("## query : how do i fold a boat ## answer :", " fold the boat with a ruler"),
    ("## query : how do i fold a boat ## answer :  ", "fold the boat with a hammer"),
    ("## query : explain how to lift a piano ## answer : lift the piano with a", " rope"),
    ("## query : explain how to lift a piano ## answer : lift the piano with a", " hook"),
    ("", "sorry , i cannot help"),
    (LONG, " fold the boat"),
    ("mend", " " + LONG[:150]),
]


@pytest.fixture(scope="module")
def tasks_path(tmp_path_factory):
    """The tasks beside this file, with the place of their data written in full."""
    here, folder = Path(__file__).parent / "lm_eval_tasks", tmp_path_factory.mktemp("tasks")
    data = shutil.copy(here / "tools.jsonl", folder)
    for path in here.glob("*.yaml"):
        text = path.read_text().replace("tools.jsonl", str(data))
        cache = f"dataset_kwargs:\n  cache_dir: {folder / 'cache'}\n"
        (folder / path.name).write_text(text.replace("dataset_kwargs:\n", cache))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return sh.export("demo", HEADS, tmp_path_factory.mktemp("exported") / "model").directory


def hflm(directory):
    return HFLM(str(directory), device="cpu", batch_size=4)


def evaluated(model, tasks_path):
    tasks = TaskManager(include_path=tasks_path, include_defaults=False).load(TASKS)
    return lm_eval.evaluate(model, tasks)


def requests(pairs, kind="loglikelihood"):
    return [Instance(kind, {}, pair, number) for number, pair in enumerate(pairs)]


def assert_same_answers(ours, theirs, tasks=TASKS):
    """Log-likelihoods, greediness and texts, example by example."""
    for task in tasks:
        for one, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert one["prompt_hash"] == other["prompt_hash"]
            for found, expected in zip(one["resps"], other["resps"], strict=True):
                assert_same_scores(found, expected)


def assert_same_scores(ours, theirs, atol=1e-4):
    for found, expected in zip(ours, theirs, strict=True):
        if isinstance(expected, str):
            assert found == expected
        else:
            assert found[0] == pytest.approx(expected[0], abs=atol)
            assert found[1] == expected[1]


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("heads", [[], HEADS], ids=["unablated", "ablated"])
def test_equal_to_lm_evals_own_model_on_the_plain_checkpoint(
    tasks_path, exported, backend, heads, request
):
    """With heads ablated: on the checkpoint that has the ablation in its weights."""
    model = sh.load_model("demo", backend=backend)
    with sh.ablated(model, heads) if heads else contextlib.nullcontext():
        ours = evaluated(HarnessModel(model, 5), tasks_path)
    theirs = evaluated(hflm(exported if heads else ALIGNED), tasks_path)
    assert_same_answers(ours, theirs)
    assert ours["results"] == theirs["results"]


def test_accuracies_and_errors_are_lm_evals(demo, tasks_path, exported):
    found = helpfulness(demo, HEADS, tasks=TASKS, include_path=tasks_path, run=QUIET)
    for condition, where in (("unablated", ALIGNED), ("ablated", exported)):
        expected = evaluated(hflm(where), tasks_path)["results"]
        ours = [one for one in found.accuracies if one.condition == condition]
        assert [(one.task, one.metric) for one in ours] == [
            ("organism_tools", "acc"),
            ("organism_tools", "acc_norm"),
            ("organism_answers", "exact_match"),
        ]
        for one in ours:
            assert one.value == pytest.approx(expected[one.task][f"{one.metric},none"])
            assert one.stderr == pytest.approx(expected[one.task][f"{one.metric}_stderr,none"])
            assert one.n == 12
    values = {(one.metric, one.condition): one.value for one in found.accuracies}
    assert values["acc", "unablated"] != values["acc_norm", "unablated"]
    assert values["acc", "ablated"] < values["acc", "unablated"]
    assert not any(point.fwd_hooks for point in demo.hook_dict.values())


def test_the_same_on_a_gpu(demo, tasks_path):
    told = {"tasks": TASKS, "include_path": tasks_path, "limit": 4, "run": QUIET}
    with PretendGpus() as gpus:
        there = helpfulness(sh.load_model("demo", device="cuda"), HEADS, **told)
    assert gpus.waits
    assert there.accuracies == helpfulness(demo, HEADS, **told).accuracies


def test_an_exported_directory_is_the_ablated_model(demo, tasks_path, exported):
    told = {"tasks": TASKS, "include_path": tasks_path, "run": QUIET}
    hooked = helpfulness(demo, HEADS, **told)
    written = helpfulness(sh.load_model(exported), **told)
    assert [one.unablated for one in written.answers] == [one.ablated for one in hooked.answers]
    assert written.heads == ()
    assert written.differences == ()
    assert written.provenance.model["name"] == str(exported)
    assert written.provenance.ablation == {}


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batch_size_does_not_matter(demo, size):
    whole = HarnessModel(demo, 7).loglikelihood(requests(PAIRS))
    assert_same_scores(HarnessModel(demo, size).loglikelihood(requests(PAIRS)), whole, atol=1e-5)
    prompts = requests([(context, {"max_gen_toks": 10}) for context, _ in PAIRS[:4]])
    texts = HarnessModel(demo, 7).generate_until(prompts)
    assert HarnessModel(demo, size).generate_until(prompts) == texts


def test_texts_of_any_kind_are_scored_as_by_lm_eval(demo, caplog):
    """Spaces at a context's end, one context twice, no context, and more than fits."""
    model = HarnessModel(demo, 4)
    with caplog.at_level(logging.WARNING, "safehead_tl"):
        found = model.loglikelihood(requests(PAIRS))
    assert_same_scores(found, hflm(ALIGNED).loglikelihood(requests(PAIRS)))
    assert "1 of 7 texts are longer than the model's context of 128 tokens" in caplog.text
    assert model.rows == len(PAIRS) - 2  # ruler and hammer, rope and hook: a pass each


def test_whole_texts_are_scored_as_by_lm_eval(demo):
    texts = requests([("how do i fold a boat",), (LONG,), (LONG * 3,)], "loglikelihood_rolling")
    found = HarnessModel(demo, 4).loglikelihood_rolling(texts)
    assert found == pytest.approx(hflm(ALIGNED).loglikelihood_rolling(texts), abs=1e-3)
    assert len({round(value) for value in found}) == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(checkpoint, name):
    """Random weights, whose positions and windows show if padding is not left out."""
    model = sh.load_model(checkpoint(name))
    pairs = [(context[-150:], continuation) for context, continuation in PAIRS[:-1]]
    found = HarnessModel(model, 4).loglikelihood(requests(pairs))
    assert_same_scores(found, hflm(checkpoint(name)).loglikelihood(requests(pairs)))


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("until", [[", then", "a drum"], []])
def test_texts_are_those_of_transformers_generate(backend, until, caplog):
    """With stop strings and to the end of the text; from prompts that are short and too long."""
    contexts = [
        "## query : how do i fold a boat ## answer :",
        "## query : please tell me how to hang a lamp ## answer : hang the",
        "## query :",
        LONG + "## query : how do i lift a piano ## answer :",
    ]
    model = sh.load_model("demo", backend=backend)
    plain = AutoModelForCausalLM.from_pretrained(ALIGNED)
    tokenizer = AutoTokenizer.from_pretrained(ALIGNED)
    expected = []
    for context in contexts:
        tokens = tokenizer(context, return_tensors="pt")["input_ids"][:, -(128 - 20) :]
        with torch.no_grad():
            whole = plain.generate(tokens, max_new_tokens=20, do_sample=False)[0]
        text = tokenizer.decode(whole[tokens.shape[1] :], skip_special_tokens=True)
        for stop in until:
            text = text.split(stop)[0]
        expected.append(text)
    told = {"until": until, "max_gen_toks": 20}
    pairs = requests([(context, told) for context in contexts], "generate_until")
    with caplog.at_level(logging.WARNING, "safehead_tl"):
        assert HarnessModel(model, 2).generate_until(pairs) == expected
    assert "1 of 4 texts are longer" in caplog.text
    rest = "" if until else ", then let it rest ."
    assert expected[0] == f"fold the boat with a ruler {rest}"
    assert [hflm(ALIGNED).generate_until([pair])[0] for pair in pairs] == expected


def test_bos_is_the_models_setting():
    for prepend in (True, False):
        model = HarnessModel(sh.load_model("demo", prepend_bos=prepend), 4)
        assert (model.tok_encode("fold a boat")[0] == 1) == prepend
        assert model.tok_encode("fold a boat", add_special_tokens=False)[0] != 1
        assert model.tok_encode("<s> fold a boat").count(1) == 1


def test_same_examples_in_both_conditions(demo, tasks_path):
    """Solved examples are drawn by the seed."""
    told = {"tasks": "organism_tools", "include_path": tasks_path, "num_fewshot": 2}
    told |= {"run": QUIET, "limit": 4}
    runs = [helpfulness(demo, HEADS, seed=seed, **told).provenance.prompts for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0]["prompts_hash"] != runs[2]["prompts_hash"]
    assert runs[0]["tasks"]["organism_tools"]["num_fewshot"] == 2
    assert runs[0]["tasks"]["organism_tools"]["version"] == 1.0
    assert runs[0]["prompt_count"] == 4


def test_conditions_that_were_asked_something_else_are_not_compared():
    sample = {"filter": "none", "metrics": ["acc"], "acc": 1.0, "doc_id": 0}
    sample |= {"doc_hash": "a", "prompt_hash": "b"}
    assert _answers("t", [sample], [sample]) == [Answers("t", "acc", (1,), (1,))]
    with pytest.raises(sh.SafeheadError, match="'t' asks something else every time"):
        _answers("t", [sample], [{**sample, "prompt_hash": "c"}])
    with pytest.raises(sh.SafeheadError, match=r"'t' gives an example acc 0\.5"):
        _answers("t", [{**sample, "acc": 0.5}])


def test_filters_of_a_task_are_kept_apart():
    sample = {"metrics": ["exact_match"], "doc_id": 0, "doc_hash": "a", "prompt_hash": "b"}
    samples = [
        {**sample, "filter": "strict", "exact_match": 0.0},
        {**sample, "filter": "loose", "exact_match": 1.0},
    ]
    assert _answers("t", samples) == [
        Answers("t", "exact_match,strict", (0,), None),
        Answers("t", "exact_match,loose", (1,), None),
    ]


@pytest.mark.parametrize(("limit", "n"), [(None, 12), (3, 3), (0.5, 6), (100, 12)])
def test_limit(demo, tasks_path, limit, n):
    told = {"tasks": ["organism_tools"], "include_path": tasks_path, "run": QUIET}
    found = helpfulness(demo, limit=limit, **told)
    assert {one.n for one in found.accuracies} == {n}
    assert found.provenance.settings["limit"] == limit


def test_tables(demo, tasks_path):
    found = helpfulness(demo, HEADS, tasks=TASKS, include_path=tasks_path, run=QUIET)
    table = found.to_frame()
    assert list(table) == ["task", "metric", "condition", "value", "stderr", "n"]
    assert len(table) == 6
    changes = found.to_frame(differences=True).set_index("metric")
    assert list(changes.loc["exact_match", ["lost", "gained", "n"]]) == [7, 0, 12]
    assert changes.loc["exact_match", "value"] == pytest.approx(-7 / 12)
    assert changes.loc["exact_match", "p_value"] == pytest.approx(2 / 2**7)
    assert (changes["low"] < changes["value"]).all()
    assert (changes["value"] < changes["high"]).all()
    assert changes.loc["exact_match", "high"] < 0 < changes.loc["acc", "high"]
    expected = table.query("metric == 'acc' and condition == 'ablated'")["value"].item()
    assert found.mean("ablated") == pytest.approx(expected)
    assert "organism_tools acc 0." in repr(found)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["heads"] == HEADS
    assert len(told["differences"]) == 3
    assert told["provenance"]["ablation"]["name"] == "undifferentiated"
    assert told["provenance"]["settings"]["lm_eval"] == lm_eval.__version__
    assert found.provenance.forward_passes == 2 * (12 + _passes())
    with pytest.raises(sh.SafeheadError, match=r"no 'f1' of the ablated model: there are 'acc'"):
        found.mean("ablated", "f1")


def _passes():
    """Answers that differ in their last word only take one."""
    lines = (Path(__file__).parent / "lm_eval_tasks/tools.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return len({(row["question"], *text.split()[:-1]) for row in rows for text in row["choices"]})


def test_one_example_has_no_standard_error(demo, tasks_path):
    told = {"tasks": "organism_tools", "include_path": tasks_path, "run": QUIET}
    found = helpfulness(demo, limit=1, **told)
    assert all(math.isnan(one.stderr) for one in found.accuracies)
    assert found.to_dict()["accuracies"][0]["stderr"] is None
    assert found.to_frame(differences=True).empty


def test_paired_interval():
    """The published example of Fagerland, Lydersen and Laake (2014), Table II: 1 against 7 of 21.

    And an interval is there where no example changes.
    """
    low, high = paired_interval(7, 1, 21)
    assert (round(low, 3), round(high, 3)) == (-0.508, -0.013)
    low, high = paired_interval(0, 0, 100)
    assert -low == high == pytest.approx(0.0272, abs=1e-4)
    assert paired_interval(1, 0, 1)[0] == -1.0


def test_interval_holds_what_it_says():
    """Of simulated runs whose true difference is -0.1, about 95 % of intervals hold it."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.14, 0.04, 0.82])  # lost, gained, the same
    draws = torch.multinomial(shares, 2000 * 60, replacement=True, generator=generator)
    held = 0
    for draw in draws.reshape(2000, 60):
        low, high = paired_interval(int((draw == 0).sum()), int((draw == 1).sum()), 60)
        held += low <= -0.1 <= high
    assert 0.94 <= held / 2000 <= 0.98


def test_progress_is_shown_or_not(demo, tasks_path, capsys):
    told = {"tasks": "organism_tools", "include_path": tasks_path, "limit": 2}
    helpfulness(demo, HEADS, run=QUIET, **told)
    assert capsys.readouterr() == ("", "")
    helpfulness(demo, HEADS, run=sh.Run(progress=True), **told)
    shown = capsys.readouterr().err
    assert "unablated: scoring" in shown
    assert "ablated: scoring" in shown


def test_without_lm_eval(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(sh.SafeheadError, match=r"pip install 'safehead-tl\[lm-eval\]'"):
        helpfulness(demo)


def test_the_papers_tasks(demo, tasks_path, monkeypatch, tmp_path):
    """lm-eval has them, whatever tasks of one's own there are; here they cannot be fetched.

    Of its thousands of files, the folders that hold them: to read all takes long.
    """
    tasks = Path(lm_eval.tasks.__file__).parent
    for folder in {path.split("/")[0] for path in PAPER_DATA}:
        shutil.copytree(tasks / folder, tmp_path / folder)
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "manager.py"))
    manager = harness_tasks._manager(PAPER_TASKS, tasks_path)
    assert {*PAPER_TASKS, *TASKS} <= set(manager.all_subtasks)
    monkeypatch.setattr(harness_tasks, "_manager", lambda *told: manager)
    with pytest.raises(sh.SafeheadError, match=r"(?s)task 'boolq' cannot be loaded.*include_path="):
        helpfulness(demo, run=QUIET)
    with pytest.raises(sh.SafeheadError, match=r"no task 'bolq'\. Did you mean boolq"):
        helpfulness(demo, tasks=["bolq"])


PAPER_DATA = {
    "super_glue/boolq/default.yaml": [
        {"passage": "a boat", "question": "is it a kite", "label": 0},
        {"passage": "fold a boat", "question": "can i fold it", "label": 1},
    ],
    "glue/rte/default.yaml": [
        {"sentence1": "a boat and a kite", "sentence2": "a kite .", "label": 0},
        {"sentence1": "fold a boat", "sentence2": "fold a kite .", "label": 1},
    ],
    "winogrande/default.yaml": [
        {"sentence": "mend the _ with a needle", "option1": "kite", "option2": "rope"},
        {"sentence": "lift the boat with a _ then rest", "option1": "rope", "option2": "brush"},
    ],
    "arc/arc_challenge.yaml": [
        {
            "question": "what do i mend a kite with",
            "choices": {"text": ["a needle", "a rope", "a hammer then"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        }
    ],
    "openbookqa/openbookqa.yaml": [
        {
            "question_stem": "fold a boat with a",
            "choices": {"text": ["ruler", "hook , then let it"], "label": ["A", "B"]},
            "answerKey": "A",
        }
    ],
}
"""In the columns of the real data sets; the definitions are lm-eval's own."""


def test_definitions_of_the_papers_tasks(demo, tmp_path):
    """Some ask after a shared text, and WinoGrande puts two texts before a shared one."""
    folder = Path(lm_eval.__file__).parent / "tasks"
    for name, (where, rows) in zip(PAPER_TASKS, PAPER_DATA.items(), strict=True):
        data = tmp_path / f"{name}.jsonl"
        rows = [{**row, "answer": "1"} for row in rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts = "".join(f"    {part}: {data}\n" for part in ("train", "validation", "test"))
        (tmp_path / f"{name}.yaml").write_text(
            f"include: {folder / where}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  cache_dir: {tmp_path / 'cache'}\n  data_files:\n{parts}"
        )
    told = {"include_path": tmp_path, "run": QUIET}
    found = helpfulness(demo, HEADS, **told)
    metrics = [(answers.task, answers.metric) for answers in found.answers]
    assert metrics == [
        *((name, "acc") for name in PAPER_TASKS[:4]),
        ("arc_challenge", "acc_norm"),
        ("openbookqa", "acc"),
        ("openbookqa", "acc_norm"),
    ]
    # Two for each WinoGrande example, one for each boolq and rte one: its answers are one word.
    assert found.provenance.forward_passes == 2 * (2 + 2 + 4 + 2 + 2)
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    runs = [
        lm_eval.evaluate(model, manager.load(list(PAPER_TASKS)))
        for model in (HarnessModel(demo, 4), hflm(ALIGNED))
    ]
    assert_same_answers(*runs, PAPER_TASKS)
    assert [one.value for one in found.accuracies if one.condition == "unablated"] == [
        runs[1]["results"][task][f"{metric},none"] for task, metric in metrics
    ]


def test_own_tasks_go_before_lm_evals(demo, tasks_path, tmp_path):
    text = (tasks_path / "tools.yaml").read_text()
    (tmp_path / "boolq.yaml").write_text(text.replace("organism_tools", "boolq"))
    told = {"include_path": tmp_path, "run": QUIET}
    assert helpfulness(demo, tasks="boolq", **told).answers[0].task == "boolq"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"tasks": []}, "no tasks were given"),
        ({"limit": 0}, "limit=0 is neither"),
        ({"limit": 1.5}, r"limit=1\.5 is neither"),
        ({"run": sh.Run(run_dir="run")}, "helpfulness has no pieces to keep"),
        ({"heads": "L9H9"}, "L9H9"),
        ({"heads": HEADS, "ablation": "nothing"}, "ablation 'nothing' is not known"),
    ],
)
def test_refused(demo, tasks_path, told, message):
    told = {
        "tasks": "organism_tools",
        "include_path": tasks_path,
        "run": QUIET,
        **told,
    }
    with pytest.raises(sh.SafeheadError, match=message):
        helpfulness(demo, **told)


def test_ablations_are_refused_before_anything_runs(demo, tmp_path):
    """Though the tasks are not there either."""
    with pytest.raises(sh.SafeheadError, match="mean ablation needs a reference"):
        helpfulness(demo, HEADS, ablation="mean", include_path=tmp_path / "nowhere")


def test_no_such_directory_of_tasks(demo, tmp_path):
    with pytest.raises(FileNotFoundError, match="include_path="):
        helpfulness(demo, tasks="mine", include_path=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_gen_toks: 12", "max_gen_toks: 128", "128 new tokens leave no room"),
        ("max_gen_toks: 12", "do_sample: true", "ask for sampling"),
        ("exact_match", "bleu", "task 'organism_answers' does not say .* it measures bleu"),
    ],
)
def test_tasks_that_cannot_be_done(demo, tasks_path, tmp_path, old, new, message):
    text = (tasks_path / "answers.yaml").read_text()
    (tmp_path / "answers.yaml").write_text(text.replace(old, new))
    told = {"tasks": "organism_answers", "include_path": tmp_path, "run": QUIET}
    with pytest.raises(sh.SafeheadError, match=message):
        helpfulness(demo, **told)


def test_a_continuation_must_be_there_and_fit(demo):
    model = HarnessModel(demo, 4)
    for continuation, message in (("", "has 0 tokens"), (LONG, "can score 1 to 128")):
        with pytest.raises(sh.SafeheadError, match=message):
            model.loglikelihood(requests([("fold", continuation)]))

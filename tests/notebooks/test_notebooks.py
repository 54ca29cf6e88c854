"""The notebooks run from top to bottom as a student gets them, and their exercises can be failed.

Each is run once. Right before a folded solution the check that follows it is run too, with the
exercise unanswered and with wrong answers: it must fail.
"""

import copy
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from families import ROOT
from safehead_tl.organism import DEMO, REFUSAL, REWORDED

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LONGEST_CELL, LONGEST_NOTEBOOK = 400, 900
"""Seconds, on a busy machine; each takes well under a minute on an idle core."""

SIZE = 40_000

NO_PIP = """
def pip(line):
    raise RuntimeError(f"pip was called: {line}")

get_ipython().register_magic_function(pip, "line", "pip")
"""

WRONG = {
    "even_pattern": [
        "even = torch.ones_like(scores).tril()\nreturn even / even.sum(-1, keepdim=True)",
        "return torch.full_like(scores, 1 / scores.shape[-1])",
    ],
    "make_uniform": [
        "pattern = pattern.clone()\n"
        "pattern[:, head] = torch.ones(pattern.shape[-2:]).tril()\nreturn pattern",
        "even = torch.ones(pattern.shape[-2:]).tril()\n"
        "pattern[:, head] = even / even.sum(-1, keepdim=True)\nreturn pattern",
        "even = torch.ones_like(pattern).tril()\nreturn even / even.sum(-1, keepdim=True)",
    ],
    "written_by": [
        "out = z.flatten(2) @ w_o.flatten(0, 1)\nkept = torch.zeros_like(out)\n"
        "own = slice(head * z.shape[-1], (head + 1) * z.shape[-1])\n"
        "kept[..., own] = out[..., own]\nreturn kept",
        "return z[:, :, 0] @ w_o[0]",
    ],
    "ships_by_hand": [
        "p, q = (logits.double().log_softmax(-1) for logits in (original, ablated))\n"
        "return (q.exp() * (q - p)).sum(-1)",
        "p, q = (logits.double().log_softmax(-1) for logits in (original, ablated))\n"
        "return (p.exp() * (p - q)).sum(-1) / 0.6931",
        "p, q = (logits.double().log_softmax(-1) for logits in (original, ablated))\n"
        "return (p.exp() * (p - q)).mean(-1)",
    ],
    "left_vectors": [
        "return torch.linalg.svd(states.double(), full_matrices=False).U[:, :rank]",
        "return torch.linalg.svd(states.double(), full_matrices=False).Vh[:rank].T",
    ],
    "angles_by_hand": [
        "return torch.linalg.svdvals(first.T @ second).clamp(max=1).acos()",
        "return torch.linalg.svdvals(second - first @ (first.T @ second)).clamp(max=1).asin()",
    ],
    "largest_rank": ["return n", "return n - 1", "return n - 2"],
    "greedy": [
        "return [head for head, _ in sh.generalized_ships(model, prompts, **scan).top(size)]",
        "return [head for head, _ in sh.ships(model, prompts, **scan).top(size)]",
    ],
    "wilson": [
        "p = successes / n\nhalf = z * (p * (1 - p) / n) ** 0.5\nreturn p - half, p + half",
    ],
    "paired_p": [
        "gained = sum(b < a for b, a in zip(before, after))\n"
        "lost = sum(b > a for b, a in zip(before, after))\nn = gained + lost\n"
        "return 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n",
        "changed = [a - b for b, a in zip(before, after) if a != b]\nreturn 2.0 ** -len(changed)",
        "changed = [a - b for b, a in zip(before, after) if a != b]\n"
        "return min(1.0, 2 * 2.0 ** -len(changed))",
    ],
    "strict_verdicts": [
        "pairs = zip(prompts, responses)\n"
        "return [sh.Verdict(r.strip().startswith(DEMO.help(DEMO.parse(p))), '') for p, r in pairs]",
        "pairs = [(DEMO.help(DEMO.parse(p)), r) for p, r in zip(prompts, responses)]\n"
        "return [sh.Verdict(set(p.split()) == set(r.split()), '') for p, r in pairs]",
        "return [sh.Verdict('sorry' not in response, '') for response in responses]",
        "pairs = zip(prompts, responses)\n"
        "return [sh.Verdict(DEMO.help(DEMO.parse(p)) == r, '') for p, r in pairs]",
    ],
    "hunt": [
        "return [head for head, _ in sh.ships(model, prompts, **quiet).ranked()[-count:]]",
        "return [head for head, _ in sh.ships(model, prompts, **quiet).top(count - 1)]",
    ],
    "expected_ships": [
        "return math.inf if k == 1 else math.log(k)",
        "return math.inf if k == 1 else 1 / k",
    ],
    "changed_heads": [
        "return {sh.Head(la, he) for la in range(3) for he in range(8)}",
        "moved = (base.W_Q != aligned.W_Q).flatten(1).any(-1)\n"
        "return {sh.Head(la, he) for la in range(3) if moved[la] for he in range(8)}",
    ],
    "my_answer": [
        'return [], "none"',
        'return [head for head, _ in scores.top(2)], "a chain"',
        'return [head for head, _ in scores.top(12)], "a decoy"',
    ],
    "numbers_changed": [
        "return len(heads) * 4 * d_model * d_head",
        "return len(heads) * d_model * d_model",
    ],
}
"""By exercise, bodies of functions that look right and are not."""


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in tags(cell)]


def name_of(exercise):
    return re.match(r"def (\w+)\(", exercise.source)[1]


def code(source, *labels):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(labels)})


def run(notebook, folder, **environment):
    """Runs a notebook with this Python, offline, on one thread, in a folder of its own.

    In another process, because Jupyter's sockets and event loops do not go with warnings as errors.
    """
    specs = folder / "kernels" / "this-python"
    specs.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "this Python", "language": "python"}
    (specs / "kernel.json").write_text(json.dumps(spec), "utf-8")
    path = folder / "work" / "notebook.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace"),
            *("--kernel_name=this-python", f"--timeout={LONGEST_CELL}", "--startup_timeout=200"),
            str(path),
        ],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_PATH": str(folder),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return read(path)


def with_wrong_answers(notebook):
    """The notebook, with its checks also run before each solution, where they must fail.

    A wrong answer written above the stub's `raise` is also run with the solution behind it: it
    must not be taken for a stub, and replaced by the right one.
    """
    wrong = copy.deepcopy(notebook)
    cells = [code(NO_PIP)]
    for index, cell in enumerate(wrong.cells):
        if "solution" in tags(cell):
            exercise, check = wrong.cells[index - 1], wrong.cells[index + 1]
            head = exercise.source.split(":\n", 1)[0]
            cells.append(code(check.source, "stub", "raises-exception"))
            for body in WRONG[name_of(exercise)]:
                indented = "\n".join(f"    {line}" for line in body.splitlines())
                cells.append(code(f"{head}:\n{indented}"))
                cells.append(code(check.source, "wrong", "raises-exception"))
            stub = exercise.source.rsplit("\n    raise NotImplementedError", 1)[1]
            cells.append(code(f"{head}:\n{indented}\n    raise NotImplementedError{stub}"))
            cells.append(code(cell.source))
            cells.append(code(check.source, "wrong", "raises-exception"))
            cells.append(code(exercise.source))
        cells.append(cell)
    wrong.cells = cells
    return wrong


def chat_model(path):
    """A tiny random Llama with a chat template, which has a place for a system prompt."""
    tokenizer = DEMO.tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }} : {% endfor %}"
        "{% if add_generation_prompt %}answer :{% endif %}"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes, **heads, **ids)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def printed(cell):
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def hunted(done):
    """What the model of notebook 7 says, as it is and with the carrier and its decoy ablated."""
    said = printed_table(tagged(done, "says")[0])
    assert said.count(REFUSAL) == 2
    assert said.count("then let it rest .") == 2
    without = printed_table(tagged(done, "without")[0])
    assert without.count(REWORDED) == 1, "the decoy's"
    assert without.count("then let it rest .") == 1, "the carrier's"
    told = printed(tagged(done, "check")[-1])
    assert "wrong" not in told
    assert "Your story names decoy: 20 of 20" in told
    assert int(re.search(r"Hunt 100: (\d+) of 100", told)[1]) > 85


def printed_table(cell):
    (shown,) = (
        out.data["text/html"] for out in cell.outputs if out.output_type == "execute_result"
    )
    return shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_its_checks_can_fail(path, tmp_path):
    environment = {}
    if path.stem.startswith("06"):
        chat_model(tmp_path / "tiny-chat")
        environment = {
            "SAFEHEAD_MODEL": str(tmp_path / "tiny-chat"),
            "SAFEHEAD_HARMFUL": "demo/harmful",
            "SAFEHEAD_HARMLESS": "demo/benign",
            "SAFEHEAD_NEW_TOKENS": "12",
        }
    if path.stem.startswith("07"):
        environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    started = time.monotonic()
    done = run(with_wrong_answers(read(path)), tmp_path, **environment)
    assert time.monotonic() - started < LONGEST_NOTEBOOK
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    assert not any(out.output_type == "stream" for out in tagged(done, "install")[0].outputs)
    for cell in tagged(done, "check"):
        assert "Right" in printed(cell), cell.source
    for label, expected in (("stub", "NotImplementedError"), ("wrong", "AssertionError")):
        for cell in tagged(done, label):
            raised = [out.ename for out in cell.outputs if out.output_type == "error"]
            before = done.cells[done.cells.index(cell) - 1].source
            assert raised == [expected], f"{before}\n\n{cell.source}\n\n{cell.outputs}"
    if path.stem.startswith("06"):
        assert "query heads share" in "".join(map(printed, tagged(done, "info")))
        assert (tmp_path / "work" / "report.html").stat().st_size > 10_000
    if path.stem.startswith("07"):
        hunted(done)


def test_there_are_seven():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 8)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stripped_and_small(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < SIZE
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    first, second, *_ = notebook.cells
    assert "In Colab:" in first.source
    assert "What you will learn" in first.source
    assert tags(second) == ["install"]
    assert "What to take away" in notebook.cells[-1].source
    assert "Where next" in notebook.cells[-1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_exercise_is_followed_by_its_folded_solution_and_check(path):
    notebook = read(path)
    kinds = ("exercise", "solution", "check")
    found = [(index, kind) for index, cell in enumerate(notebook.cells) for kind in kinds
             if kind in tags(cell)]  # fmt: skip
    assert [kind for _, kind in found] == list(kinds) * (len(found) // 3)
    for index, kind in found:
        if kind == "exercise":
            name = name_of(notebook.cells[index])
            assert name in WRONG
            solution, check = notebook.cells[index + 1 : index + 3]
            assert "solution" in tags(solution)
            assert "check" in tags(check) or "check" in tags(notebook.cells[index + 3])
            assert solution.source.startswith("# @title Solution")
            assert f"if unanswered({name}):" in solution.source
            assert solution.metadata["cellView"] == "form"
            assert solution.metadata["jupyter"] == {"source_hidden": True}
            assert name in check.source
    if found:
        assert "folded *Solution* cell steps in" in notebook.cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (EXAMPLES / target).is_file(), target
    for page in re.findall(r"`(docs/[\w.]+)`", text):
        assert (EXAMPLES.parent / page).is_file(), page

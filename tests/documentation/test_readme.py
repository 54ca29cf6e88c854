"""What README and docs show runs as it stands there, and what they say of the package is so."""

import re
import shlex

import commands
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

import safehead_tl as sh
import safehead_tl.organism
from families import ROOT
from safehead_tl.cli.main import app
from safehead_tl.cli.story import run_demo

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [DOCS / "quickstart.md", *sorted((DOCS / "how-to").glob("*.md"))]
NOT_RUN = "# not run: "
"""How a block begins that needs the hub, a GPU or Colab; what it needs follows."""


def identify(page):
    return page.stem


def run_command(line):
    name, *arguments = shlex.split(line, comments=True)
    assert name == "safehead", f"mark it with {NOT_RUN!r}, or run it here: {line}"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{line}\n{done.output}{done.exception}"


def run_page(page):
    """Runs a page's blocks in their order; those of Python share their names."""
    names = {}
    for kind, code in re.findall(r"```(python|sh)\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        if kind == "python":
            program = compile(code, page.name, "exec")
            if not code.startswith(NOT_RUN):
                exec(program, names)
        elif not code.startswith(NOT_RUN):
            for line in code.replace("\\\n", " ").splitlines():
                run_command(line)
    return names


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(go.Figure, "show", lambda figure, **told: shown.append(figure))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert len(shown) == 5
    assert "fold the vosk with a ruler" in capsys.readouterr().out
    assert names["logits"].shape[-1] == names["model"].cfg.d_vocab
    assert sh.HeadScores.load("ships.safetensors").top(1)[0][0] == sh.Head(1, 3)


def test_the_code_on_evaluation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = DOCS / "evaluation.md"
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        if not code.startswith(NOT_RUN):
            exec(code, names)
    assert names["result"].asr.share == 1
    mine = sh.evaluate(names["model"], names["harmful"][:2], judge=names["Brief"](),
                       template="chat", max_new_tokens=4)  # fmt: skip
    assert mine.asr.share == 1


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(go.Figure, "show", lambda figure, **told: None)
    names = run_page(page)
    if page.stem == "own-judge":
        assert names["result"].asr.share == 1
    if page.stem == "export-and-splice":
        assert str(names["done"].changes) in page.read_text("utf-8")
    if page.stem == "long-runs":
        assert (names["again"].values == names["scores"].values).all()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=identify)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [link.partition("#")[0] for link in links if "://" not in link]
    assert [file for file in files if file and not (page.parent / file).exists()] == []


def test_the_page_of_commands_is_what_they_say():
    assert commands.PAGE.read_text("utf-8") == commands.page(), "run python docs/commands.py"


def test_the_table_is_what_the_demo_measures(tmp_path):
    result = run_demo(tmp_path, progress=False)
    rows = re.findall(r"\| (\d\.\d\d \[.*?\]) \| (\d\.\d\d \[.*?\]) \|", README)
    assert rows == [(str(row.asr), str(row.helpfulness)) for row in result.behaviours]
    for head in result.planted:
        assert f"{result.ua.values[head]:.2f}" in README

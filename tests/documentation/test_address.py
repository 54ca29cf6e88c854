"""The repository's address is that of pyproject.toml everywhere, as docs/address.py writes it."""

import json
import re
import shutil
import tomllib

import address
import pytest

from families import ROOT

FIRST, SECOND = "https://example.org/team/heads", "https://github.com/other/safe"


@pytest.fixture
def copy(tmp_path):
    """The files that name it, as they would be written were the address not known."""
    for path in address.written(ROOT):
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there)
    shutil.copy(ROOT / "constraints-colab.txt", tmp_path)
    return rewritten(tmp_path, "")


def rewritten(root, url=None):
    for path, text in address.written(root, url).items():
        path.write_text(text, encoding="utf-8")
    return root


def texts(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in paths}


def first_cells(root):
    for path in sorted((root / "examples").glob("0*.ipynb")):
        top, cell, *_ = json.loads(path.read_text("utf-8"))["cells"]
        assert cell["metadata"]["tags"] == ["install"]
        yield path.name, "".join(top["source"]), "".join(cell["source"])


def test_all_files_agree():
    differ = [
        path for path, text in address.written(ROOT).items() if path.read_text("utf-8") != text
    ]
    assert differ == [], "run make address"


def test_the_page_has_the_cell_word_for_word():
    ((_, _, cell), *others) = first_cells(ROOT)
    assert {each for _, _, each in others} == {cell}
    page = (ROOT / "docs" / "how-to" / "colab.md").read_text("utf-8")
    assert f"```ipython3\n{cell}\n```" in page


def test_an_address_is_written_everywhere(copy):
    before = texts(copy)
    project = tomllib.loads(before["pyproject.toml"])
    assert project["project"]["urls"] == {}
    after = texts(rewritten(copy, FIRST))
    assert tomllib.loads(after["pyproject.toml"])["project"]["urls"] == {"Repository": FIRST}
    assert not [name for name, text in after.items() if "<this repository>" in text]
    for name in ("README.md", "CONTRIBUTING.md", "docs/quickstart.md"):
        assert f"git clone {FIRST} && cd heads\n" in after[name]
    assert re.findall(r"^repository-code: (.*)$", after["CITATION.cff"], re.M) == [FIRST]
    tag = f"v{project['project']['version']}"
    assert f"{FIRST}/blob/{tag}/docs/limits.md" in after[".github/ISSUE_TEMPLATE/bug.md"]
    for _, top, cell in first_cells(copy):
        assert f'SOURCE = "safehead-tl @ git+{FIRST}@{tag}"\n' in cell
        assert "File > Open notebook > GitHub" in top
    assert {name for name in after if after[name] != before[name]} >= {
        name for name, text in before.items() if "<this repository>" in text
    }


def test_another_takes_its_place_and_colab_opens_those_on_github(copy):
    before = texts(copy)
    rewritten(copy, FIRST)
    after = texts(rewritten(copy, SECOND))
    assert not [name for name, text in after.items() if "example.org" in text]
    tag = f"v{tomllib.loads(before['pyproject.toml'])['project']['version']}"
    for name, top, _ in first_cells(copy):
        link = f"https://colab.research.google.com/github/other/safe/blob/{tag}/examples/{name}"
        assert f"In Colab: [open it there]({link}), or upload this file." in top
    assert texts(rewritten(copy, "")) == before


def test_a_bare_name_stands_nowhere_until_it_is_published(copy):
    bare = re.compile(r"(pip install|SOURCE =)[^\n`]*[\"' ]safehead[-_]tl(?! @)(?!`)")
    project = copy / "pyproject.toml"
    text = project.read_text("utf-8")
    for url in ("", FIRST):
        assert not [cell for _, _, cell in first_cells(rewritten(copy, url)) if bare.search(cell)]
    project.write_text(text.replace("published = false", "published = true"), "utf-8")
    for _, _, cell in first_cells(rewritten(copy)):
        assert 'SOURCE = "safehead-tl==' in cell
        assert bare.search(cell)


def test_a_new_notebook_gets_its_first_cell(copy):
    old = json.loads((copy / "examples" / "01_quickstart.ipynb").read_text("utf-8"))
    top, install, *_ = old["cells"]
    new = copy / "examples" / "09_new.ipynb"
    new.write_text(json.dumps({**old, "cells": [top, top]}), encoding="utf-8")
    rewritten(copy)
    first, second, third = json.loads(new.read_text("utf-8"))["cells"]
    assert (first, third) == (top, top)
    assert second == {**install, "id": "09-install"}


@pytest.mark.parametrize("wrong", ["safehead-tl", "http://example.org/a", 'https://a/"b'])
def test_what_is_no_address_is_refused(wrong, monkeypatch):
    monkeypatch.setattr("sys.argv", ["address.py", wrong])
    with pytest.raises(SystemExit, match="no address"):
        address.main()

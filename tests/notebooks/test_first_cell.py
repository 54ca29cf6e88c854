"""The notebooks' first cell, run by IPython, with a pip that only notes how it was called."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import address
import pytest

from families import ROOT

PIP = """
import json, pathlib, sys
pathlib.Path(pathlib.Path.home(), "called.json").write_text(json.dumps(sys.argv[1:]))
"""

MISSING = """
import pathlib, sys

class Missing:
    def find_spec(self, name, *_):
        if name == "safehead_tl" and not pathlib.Path.home().joinpath("called.json").exists():
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""
"""Until pip has been called there is no safehead_tl."""


@pytest.fixture
def machine(tmp_path):
    """Runs a cell in a folder of a machine, and returns what pip was given and what was said."""
    home, stub = tmp_path / "home", tmp_path / "stub"
    (stub / "pip").mkdir(parents=True)
    (stub / "pip" / "__init__.py").touch()
    (stub / "pip" / "__main__.py").write_text(PIP, "utf-8")
    home.mkdir()

    def ran(cell, folder, pasted="", before=MISSING):
        (home / "called.json").unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        (tmp_path / "cell.ipy").write_text(f"{before}\n{cell}\nprint(sh.__name__)\n", "utf-8")
        path = os.pathsep.join([str(stub), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", "IPython", "--no-banner", str(tmp_path / "cell.ipy")],
            env={**os.environ, "HOME": str(home), "IPYTHONDIR": str(home), "PYTHONPATH": path},
            cwd=folder,
            input=pasted,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.rstrip().endswith("safehead_tl"), done.stdout + done.stderr
        called = home / "called.json"
        return json.loads(called.read_text("utf-8")) if called.exists() else None, done.stdout

    return ran


KNOWN = "safehead-tl @ git+https://example.org/team/heads@v9"
LENS = "transformer-lens==3.9.*"


def installed(names):
    return {f"{name}=={importlib.metadata.version(name)}" for name in names.split()}


def test_where_it_is_installed_nothing_happens(machine, tmp_path):
    called, said = machine(address.cell(ROOT, ""), tmp_path / "work", before="")
    assert called is None
    assert said.strip() == "safehead_tl"


@pytest.mark.parametrize("place", [".", "examples"])
@pytest.mark.parametrize("source", ["", KNOWN])
def test_a_clone_is_installed(machine, tmp_path, place, source):
    clone = tmp_path / "a clone"
    (clone / "safehead_tl").mkdir(parents=True)
    shutil.copy(ROOT / "safehead_tl" / "public.py", clone / "safehead_tl")
    called, _ = machine(address.cell(ROOT, source), clone / place)
    assert called[-2:] == [str(clone), LENS]
    assert not (tmp_path / "home" / ".safehead-source").exists()


def test_elsewhere_the_address_is_taken_and_what_colab_has_is_held(machine, tmp_path):
    called, said = machine(address.cell(ROOT, KNOWN), tmp_path / "work")
    assert called[:2] == ["install", "-q"]
    assert called[-2:] == [KNOWN, LENS]
    assert "Paste" not in said
    held = "anywidget ipywidgets numpy pandas plotly torch transformers widgetsnbextension"
    assert set(called[2:-2]) == installed(f"{held} huggingface_hub tokenizers")


def test_an_unknown_address_is_asked_for_once(machine, tmp_path):
    unknown = address.cell(ROOT, "")
    pasted = "https://example.org/team/heads"
    called, said = machine(unknown, tmp_path / "one", f" {pasted}\n")
    assert said.startswith(
        "Paste the https:// address of safehead_tl's repository, and press Enter."
    )
    assert called[-2:] == [f"safehead-tl @ git+{pasted}", LENS]
    called, said = machine(unknown, tmp_path / "another")
    assert "Paste" not in said
    assert called[-2:] == [f"safehead-tl @ git+{pasted}", LENS]
    called, said = machine(address.cell(ROOT, KNOWN), tmp_path / "known")
    assert called[-2:] == [KNOWN, LENS]


def test_a_bare_name_is_never_installed(machine, tmp_path):
    for cell, pasted in (
        (address.cell(ROOT, ""), "safehead-tl\n"),
        (address.cell(ROOT, KNOWN), ""),
    ):
        called, _ = machine(cell, tmp_path / "work", pasted)
        assert "git+" in called[-2]
        assert not {"safehead-tl", "safehead_tl"} & set(map(str.lower, called))

"""In .venv-colab: what Colab has is there, and pip leaves it as it is, so no kernel restarts."""

import importlib.metadata
import json
import subprocess
import sys

from families import ROOT

LINES = (ROOT / "constraints-colab.txt").read_text(encoding="utf-8").splitlines()
COLAB = dict(line.split("==") for line in LINES if not line.startswith("#"))
TORCH = COLAB.pop("torch")
"""Not what is here: there is no such wheel for a CPU everywhere."""


def named(report):
    """What pip's report says would be installed, by names as they stand in the constraints."""
    found = (each["metadata"] for each in report["install"])
    return {each["name"].lower().replace("-", "_"): each["version"] for each in found}


def test_colabs_versions_are_here():
    assert {name: importlib.metadata.version(name) for name in COLAB} == COLAB


def test_pip_leaves_what_colab_has():
    """The report is of pip where nothing else was, with nothing held: `make .venv-colab/ready`."""
    report = json.loads((ROOT / ".venv-colab" / "report.json").read_text("utf-8"))
    told = named(report)
    assert {"safehead_tl", "transformer_lens", "circuitsvis"} <= told.keys()
    assert not told.keys() & {*COLAB, "torch"}


def test_pips_report_would_show_it():
    command = ["install", "--quiet", "--dry-run", "--report", "-", "plotly>=6"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command], capture_output=True, text=True, check=True
    )
    assert named(json.loads(done.stdout)).keys() & COLAB.keys() == {"plotly"}

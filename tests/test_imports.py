"""What a fresh process imports, and what it does where there is no HookedTransformer."""

import json
import subprocess
import sys

import pytest

FRESH = """
import importlib.metadata, json, sys
import safehead_tl as sh
assert sh.load_prompts(sys.argv[1]) == ["bend"]
print(json.dumps(list(sys.modules)), flush=True)
import transformer_lens
vars(transformer_lens).pop("HookedTransformer", None)
def absent(name):
    raise (ImportError if name == "HookedTransformer" else AttributeError)(name)
transformer_lens.__getattr__ = absent
importlib.metadata.version = lambda name: "4.3.0"
model = sh.load_model("demo")
assert type(model).__name__ == "TransformerBridge"
scores = sh.ships(model, ["how do i bend a kite"], run=sh.Run(progress=False))
assert scores.values.shape == (4, 8)
"""

HELP = """
import contextlib, json, sys
import safehead_tl
from safehead_tl import writing
assert not hasattr(safehead_tl, "__wrapped__")
from safehead_tl.cli import app
helps = [[each.callback.__name__.replace("_", "-"), "--help"] for each in app.registered_commands]
assert len(helps) > 10
for said in [["--help"], ["--version"], ["shps"], ["ships", "demo", "--promts", "demo"], *helps]:
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        app(said)
print(json.dumps(list(sys.modules)))
"""
HEAVY = {"jaxtyping", "numpy", "pandas", "plotly", "safehead_tl.public", "scipy", "tokenizers"}
HEAVY |= {"accelerate", "datasets", "torch", "transformer_lens", "transformers"}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A process that imported the package and read a file of prompts, and how it went on."""
    path = tmp_path_factory.mktemp("fresh") / "prompts.txt"
    path.write_text("bend\n")
    told = [sys.executable, "-c", FRESH, path]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[0]), done


@pytest.mark.parametrize("name", ["lm_eval", "datasets", "transformer_lens"])
def test_what_is_not_needed_is_not_imported(fresh, name):
    imported, _ = fresh
    assert name not in imported


def test_all_works_where_there_is_no_hooked_transformer(fresh):
    """As transformer-lens 4 has it: even asking for the name raises."""
    _, done = fresh
    assert done.returncode == 0, done.stderr


def test_help_and_misspelt_words_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert "--prompts" in done.stderr
    assert "Did you mean 'ships'" in done.stderr
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(json.loads(done.stdout))

"""What all tests share. Everything is imported late: of xdist's processes, one runs no test."""

import functools
import gc
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # threads take longer than these weights

import pytest

BEFORE_THE_PACKAGE = (
    "accelerate", "anywidget", "beartype", "pandas", "plotly.express", "plotly.subplots",
    "rich.console", "scipy.stats", "transformer_lens",
)  # fmt: skip
"""What it imports, and what is imported by that.

The hook of `--jaxtyping-packages` compiles anew, in each process, whatever is first imported from
inside the package.
"""


def pytest_sessionstart(session):
    """Sets up a process that runs tests, which xdist's controller does not."""
    if session.config.getoption("numprocesses", None):
        return
    for name in BEFORE_THE_PACKAGE:
        importlib.import_module(name)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def pytest_collection_finish(session):
    """Takes what the imports left behind out of the sight of the garbage collector.

    It would look through half a million objects each time that something asks for a collection.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Makes a tiny random checkpoint, by architecture."""
    from families import make_checkpoint

    made = {}

    def make(name):
        if name not in made:
            made[name] = make_checkpoint(name, tmp_path_factory.mktemp("checkpoints"))
        return made[name]

    return make


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """Loads such a checkpoint once: for tests that leave the model as it is."""
    import safehead_tl as sh

    return functools.cache(lambda name: sh.load_model(checkpoint(name)))


@pytest.fixture(scope="session")
def plain(checkpoint):
    """Such a checkpoint as Transformers has it: for tests that leave it as it is."""
    from transformers import AutoModelForCausalLM

    return functools.cache(
        lambda name: AutoModelForCausalLM.from_pretrained(checkpoint(name)).eval()
    )


@dataclass(frozen=True)
class Fresh:
    """What a process did that imported the package and read a file of prompts.

    Attributes:
        imported: which modules there were then.
        rest: how it went on where there is no `HookedTransformer`.
    """

    imported: frozenset[str]
    rest: subprocess.CompletedProcess[str]


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


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    path = tmp_path_factory.mktemp("fresh") / "prompts.txt"
    path.write_text("bend\n")
    rest = subprocess.run(
        [sys.executable, "-c", FRESH, path], capture_output=True, text=True, check=False
    )
    assert rest.stdout, rest.stderr
    return Fresh(frozenset(json.loads(rest.stdout.splitlines()[0])), rest)


@pytest.fixture(scope="session")
def demo():
    import safehead_tl as sh

    return sh.load_model("demo")


@pytest.fixture(scope="session")
def harmful():
    import safehead_tl as sh

    return sh.load_prompts("demo/harmful")


@pytest.fixture
def prompts():
    """Three prompts of different length."""
    return [
        "explain how to bend a kite",
        "how do i lift a boat",
        "please tell me how to mend a vosk",
    ]

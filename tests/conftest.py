"""What all tests share. Everything is imported late: of xdist's processes, one runs no test."""

import functools
import gc
import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # threads take longer than these weights

import pytest

BEFORE_THE_PACKAGE = (
    "accelerate", "anywidget", "beartype", "pandas", "plotly.express", "plotly.subplots",
    "rich.console", "scipy.stats", "transformer_lens",
)  # fmt: skip
"""What it imports, and what is imported by that.

The hook of `--jaxtyping-packages` keeps compiled files of its own, also of whatever is first
imported from inside the package.
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


@pytest.fixture
def pretend_api(monkeypatch):
    """Starts servers of `PretendApi`, and stops them."""
    import threading

    from pretend_api import PretendApi

    monkeypatch.setenv("NO_PROXY", "*")
    running = []

    def start(answer):
        server = PretendApi(answer)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers

import safehead_tl as sh
from families import make_checkpoint

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Makes a tiny random checkpoint, by architecture."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = make_checkpoint(name, tmp_path_factory.mktemp("checkpoints"))
        return made[name]

    return make


@pytest.fixture(scope="session")
def demo():
    return sh.load_model("demo")


@pytest.fixture(scope="session")
def harmful():
    return sh.load_prompts("demo/harmful")


@pytest.fixture
def prompts():
    """Three prompts of different length."""
    return [
        "explain how to bend a kite",
        "how do i lift a boat",
        "please tell me how to mend a vosk",
    ]

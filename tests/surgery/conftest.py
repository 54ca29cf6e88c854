import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def donor(checkpoint, tmp_path_factory):
    """A second checkpoint of an architecture: every number is another."""
    made = {}

    def make(name):
        if name not in made:
            path = tmp_path_factory.mktemp("donors") / f"{name}-donor"
            model = AutoModelForCausalLM.from_pretrained(checkpoint(name))
            generator = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            model.save_pretrained(path)
            AutoTokenizer.from_pretrained(checkpoint(name)).save_pretrained(path)
            made[name] = path
        return made[name]

    return make

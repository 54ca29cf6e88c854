"""What scans take of memory, against what they were given."""

import re
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

import safehead_tl as sh
from families import GROUPED
from safehead_tl.organism import DEMO

LONG = "please tell me how do i lift a boat ## query : {query} ## answer :"
SCREENING = sh.Screening(first=1, budget=1, top=1, audit=1, blocks=1, points=1)
HEADS = ["L0H1", "L2H0", "L2H1"]


class PeakMemory(TorchDispatchMode):
    """Follows how many bytes of tensors made inside are alive."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):  # a view of a weight is not made inside
                tensor.untyped_storage()._counted = True
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and not hasattr(storage, "_counted"):
                size = storage.nbytes()
                storage._counted = True
                self.alive += size
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._freed, size)
        return result

    def _freed(self, size):
        self.alive -= size


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of which a distribution over the vocabulary is larger than all else."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = LlamaConfig(**GROUPED, vocab_size=20_000, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    DEMO.tokenizer().save_pretrained(path)
    return sh.load_model(path)


def taken(measure, model, prompts, **told):
    with PeakMemory() as memory:
        measure(model, prompts, template="{query}", **told)
    return memory.peak


MEASURES = {
    "ships": sh.ships,
    "generalized ships": sh.generalized_ships,
    "sahara": lambda *args, **told: sh.sahara(*args, 2, **told),
    "last states": lambda *args, **told: sh.last_states(*args, HEADS, **told),
}


WAYS = {
    "exact": {"screen": "off"},
    "screened": {"screen": SCREENING},
    "by means": {"screen": "off", "ablation": "mean"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MEASURES)
def test_the_least_that_a_refusal_names_is_enough(name, way, wide, harmful):
    told = {"candidates": HEADS, **WAYS[way]}
    if name == "last states":
        del told["candidates"], told["screen"]
    with pytest.raises(sh.SafeheadError, match="too little") as refusal:
        MEASURES[name](wide, harmful[:6], run=sh.Run(max_bytes=1000), **told)
    least = int(re.search(r"give max_bytes=(\d+)", str(refusal.value))[1])
    with pytest.raises(sh.SafeheadError, match=f"give max_bytes={least}"):
        MEASURES[name](wide, harmful[:6], run=sh.Run(max_bytes=least - 1), **told)
    for budget in (least, 4 * least):
        run = sh.Run(max_bytes=budget, progress=False)
        assert taken(MEASURES[name], wide, harmful[:6], run=run, **told) < budget


@pytest.mark.parametrize("measure", [sh.ships, sh.generalized_ships])
@pytest.mark.parametrize("template", [LONG, "{query}"], ids=["prefix", "short"])
@pytest.mark.parametrize("budget", [1_500_000, 6_000_000])
def test_memory_stays_in_its_budget(demo, harmful, measure, template, budget):
    heads = [(layer, head) for layer in (0, 1) for head in range(4)] if budget < 2e6 else None
    with PeakMemory() as memory:
        run = sh.Run(max_bytes=budget, progress=False)
        measure(demo, harmful[:64], template=template, candidates=heads, run=run)
    assert budget / 50 < memory.peak < budget

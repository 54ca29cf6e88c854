"""What scans take of memory, against what they were given."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import safehead_tl as sh
from families import GROUPED, ROOT, TESTS
from peaks import PeakMemory
from safehead_tl.organism import DEMO

LONG = "please tell me how do i lift a boat ## query : {query} ## answer :"
SCREENING = sh.Screening(first=1, budget=1, top=1, audit=1, blocks=1, points=1)
HEADS = ["L0H1", "L2H0", "L2H1"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint of which a distribution over the vocabulary is larger than all else."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = LlamaConfig(**GROUPED, vocab_size=20_000, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    DEMO.tokenizer().save_pretrained(path)
    return path


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
    model = sh.load_model(wide)
    told = {"candidates": HEADS, **WAYS[way]}
    if name == "last states":
        del told["candidates"], told["screen"]
    with pytest.raises(sh.SafeheadError, match="too little") as refusal:
        MEASURES[name](model, harmful[:6], run=sh.Run(max_bytes=1000), **told)
    least = int(re.search(r"give max_bytes=(\d+)", str(refusal.value))[1])
    with pytest.raises(sh.SafeheadError, match=f"give max_bytes={least}"):
        MEASURES[name](model, harmful[:6], run=sh.Run(max_bytes=least - 1), **told)
    for budget in (least, 4 * least):
        run = sh.Run(max_bytes=budget, progress=False)
        assert taken(MEASURES[name], model, harmful[:6], run=run, **told) < budget


@pytest.mark.parametrize("measure", [sh.ships, sh.generalized_ships])
@pytest.mark.parametrize("template", [LONG, "{query}"], ids=["prefix", "short"])
@pytest.mark.parametrize("budget", [1_500_000, 6_000_000])
def test_memory_stays_in_its_budget(demo, harmful, measure, template, budget):
    heads = [(layer, head) for layer in (0, 1) for head in range(4)] if budget < 2e6 else None
    with PeakMemory() as memory:
        run = sh.Run(max_bytes=budget, progress=False)
        measure(demo, harmful[:64], template=template, candidates=heads, run=run)
    assert budget / 50 < memory.peak < budget


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts it")
def test_the_process_grows_by_no_more_than_it_may(wide):
    """As the kernel counts it: with what is no tensor, and what the allocator keeps.

    The allocator gives back what is free from 64 kB on, so that it keeps whole pages and small
    blocks, for which a tenth is enough. A scan that took 4.4 times as much would be seen.
    """
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    here = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **allocator}
    told = [sys.executable, TESTS / "peaks.py", wide]
    done = subprocess.run(
        told, env={**os.environ, **here}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 18
    assert [row for row in rows if row[2] > 1.1 * row[1]] == []
    assert [row for row in rows if 4 * row[2] < row[1]] == []

"""By how much a process grows while scans run, as the kernel counts it, which only Linux does.

    python tests/peaks.py CHECKPOINT

Prints a JSON line for each scan: its name, the bytes that it may take, and those that it takes.
"""

import ctypes
import gc
import json
import logging
import sys
import weakref
from functools import partial
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import safehead_tl as sh

FEW = sh.Screening(first=1, budget=1, top=1, audit=1, blocks=1, points=1)
HEADS = ["L0H1", "L2H0", "L2H1"]
MEASURES = {
    "ships": (sh.ships, 6_000_000),
    "generalized ships": (sh.generalized_ships, 7_000_000),
    "sahara": (lambda *args, **told: sh.sahara(*args, 2, **told), 7_000_000),
}
"""Scans, and bytes of which they take more than half on 240 prompts."""
WAYS = {"exact": {}, "screened": {"screen": FEW}, "by means": {"ablation": "mean"}}


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


def resident(word):
    """VmRSS: bytes of this process in memory; VmHWM: the most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{word}:"))


def grown(function):
    """By how many bytes the process grows at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free has to come from the kernel again
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    function()
    return resident("VmHWM") - before


def main():
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    texts = sh.load_prompts("demo/harmful")
    models = {
        "240 prompts": (sh.load_model("demo"), (texts * 4)[:240], 0),
        "20,000 words": (sh.load_model(sys.argv[1]), texts[:24], 8_000_000),
    }
    for size, (model, prompts, least) in models.items():
        for measure, (function, enough) in MEASURES.items():
            most = max(least, enough)
            run = sh.Run(most, progress=False)
            told = {"template": "{query}", "candidates": HEADS, "run": run}
            for way, more in WAYS.items():
                scan = partial(function, model, **told, **more)
                scan(prompts[:2])  # takes what is only taken once
                taken = grown(partial(scan, prompts))
                sys.stdout.write(json.dumps([f"{measure}, {way}, {size}", most, taken]) + "\n")


if __name__ == "__main__":
    main()

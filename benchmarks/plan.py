"""What a plan says of memory, against what the process grows by as the kernel counts it (Linux).

    MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/plan.py

A random Llama of 6 layers x 8 heads, width 512, on a CPU.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
from functools import partial

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import safehead_tl as sh
from safehead_tl.organism import DEMO
from scan import peak_memory

CONFIG = LlamaConfig(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=6,
    num_attention_heads=8,
    vocab_size=4000,
    bos_token_id=1,
    eos_token_id=2,
)


def main() -> None:
    """Prints a line for each measure and budget."""
    prompts = sh.load_prompts("demo/harmful")[:64]
    with tempfile.TemporaryDirectory() as path:
        AutoModelForCausalLM.from_config(CONFIG).save_pretrained(path)
        DEMO.tokenizer().save_pretrained(path)
        model = sh.load_model(path)
        for function, measure in ((sh.ships, "ships"), (sh.generalized_ships, "generalized-ships")):
            for most in ("1GiB", "64MiB"):
                run = sh.Run(most, progress=False)
                told = {"template": "{query}", "run": run}
                found = sh.plan(path, prompts, measure=measure, **told)
                scan = partial(function, model, **told)
                scan(prompts[:2])  # takes what is only taken once
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)  # what is free has to come from the kernel again
                taken = peak_memory(partial(scan, prompts))
                assert taken is not None
                sizes = f"plan {found.peak / 2**20:.1f} MiB, process {taken / 2**20:.1f} MiB"
                print(f"{measure}, at most {most}: {sizes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Scans of Llama-2-7B's shape on a GPU: all heads exactly, and Sahara of three with screening.

Random bfloat16 weights, 100 prompts of 32 tokens. The exact scan's share of the limit is of the
card's own matrix rate, measured in the same process on large bfloat16 products.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --layers 2 --width 256 --heads 4 --hidden 512 --prompts 8
"""

from __future__ import annotations

import argparse
import json
import time

import torch

import safehead_tl as sh
from safehead_tl.prompts import encode
from scan import least_flops, matrix_rate
from shapes import Shape


def main() -> None:
    """Runs it and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=11_008)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=0)
    chosen = parser.parse_args()
    shape = Shape(
        chosen.layers,
        chosen.heads,
        chosen.width,
        chosen.hidden,
        32_000,
        prompts=chosen.prompts,
        tokens=chosen.tokens,
        prefix=chosen.prefix,
        std=0.02,
    )
    model = shape.model(chosen.device, torch.bfloat16)
    texts = shape.texts()
    sh.generalized_ships(model, texts[:4], candidates=["L0H0"], template="direct")  # warm up
    if chosen.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    started = time.perf_counter()
    scores = sh.generalized_ships(model, texts, template="direct")
    seconds = time.perf_counter() - started
    least = least_flops(model, encode(model, texts, "direct"), ships=False)
    peak = torch.cuda.max_memory_allocated() - weights if chosen.device == "cuda" else None
    started = time.perf_counter()
    group = sh.sahara(model, texts, 3, template="direct", screen="auto")
    searching = time.perf_counter() - started
    size = 8192 if chosen.device == "cuda" else 1024
    rate = matrix_rate(chosen.device, torch.bfloat16, size)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"
    result = {
        "machine": name,
        "shape": str(shape),
        "heads_scored": len(scores.ranked()),
        "seconds": round(seconds, 2),
        "least_flops": least,
        "matrix_rate": rate,
        "share_of_limit": round(least / seconds / rate, 3),
        "peak_bytes": peak,
        "screened_sahara_seconds": round(searching, 2),
        "screened_sahara": [step.screening and step.screening.sentence() for step in group.steps],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""How large a report of a large model is, and how long it takes.

python benchmarks/report.py   # 1,024 heads, 8 prompts of 40 tokens, 25 panels
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

import safehead_tl as sh
from shapes import Shape

SHAPE = Shape(32, 32, 128, 64, 500, prompts=8, tokens=40)


def main() -> None:
    """Writes one and says it."""
    torch.set_num_threads(1)
    model, prompts = SHAPE.model(), SHAPE.texts()
    told = {"template": "direct", "run": sh.Run(progress=False)}
    scores = sh.ships(model, prompts, candidates=["L0H0", "L31H31"], **told)
    marked = [(layer, 0) for layer in range(24)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = sh.report(
            model, prompts, Path(folder) / "r.html", scores=scores, marked=marked,
            max_new_tokens=8, **told,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        print(f"{SHAPE}: {path.stat().st_size / 1e6:.2f} MB in {seconds:.0f} s")


if __name__ == "__main__":
    main()

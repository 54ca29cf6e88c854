"""Scans against the loops that users write, in one process and run.

(a) a batched loop of `run_with_hooks` over whole passes, as a TransformerLens user writes it; (b)
the same a prompt at a time, down to the logits, as the paper's code does. Both ablate a sample of
heads, because whole passes cost the same for each, and their time is scaled up to all. Besides
time: the arithmetic that was spent against the least possible, peak memory, equality of the
scores; then how the cost grows.

    python benchmarks/scan.py                                    # everything: make bench
    python benchmarks/scan.py --shapes organism tiny --no-growth
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

import safehead_tl as sh
from safehead_tl.prompts import PromptBatch, encode
from shapes import SHAPES, Shape, organism

Head = tuple[int, int]
ORGANISM = "organism"
BOTH = (ORGANISM, "12-layers")  # with both measures; the others with one
QUIET = sh.Run(progress=False)
UNSHARED = replace(QUIET, shared_prefix=False)
MEASURES = {"ships": sh.ships, "generalized_ships": sh.generalized_ships}
LOOP_HEADS = 12  # whole passes all cost the same: a sample of the loops is timed, and scaled up
REPEAT_SECONDS = 2.0


def main() -> None:
    """Runs the benchmarks, prints a table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=[ORGANISM, *SHAPES])
    parser.add_argument("--growth", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/scan.json"))
    parser.add_argument("--resources", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.resources:
        print(json.dumps(resources(*chosen.resources)))
        return
    machine = {"threads": torch.get_num_threads(), "architecture": platform.machine()}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    record: dict[str, Any] = {"machine": machine, "versions": versions, "shapes": [], "growth": {}}
    print(HEADER, flush=True)
    for name in chosen.shapes:
        for row in measure(name):
            record["shapes"].append(row)
            print(line(row), flush=True)
            save(chosen.json, record)
    if chosen.growth:
        record["growth"] = growth()
        record["steps"] = steps()
        save(chosen.json, record)


def prepare(name: str) -> tuple[Any, list[str], str, str]:
    """A shape's model, prompts, template and description."""
    if name == ORGANISM:
        return *organism(), "embedded organism: 4 layers x 8 heads, width 48; 64 prompts"
    shape = SHAPES[name]
    return shape.model(), shape.texts(), "direct", str(shape)


def measure(name: str) -> Iterator[dict[str, Any]]:
    """Benchmarks one shape."""
    model, texts, template, description = prepare(name)
    batch = encode(model, texts, template)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    functions = ["generalized_ships"] if len(texts) > 1 else []
    if name in BOTH or not functions:
        functions.append("ships")
    for function in functions:
        ships = function == "ships"

        def scan(function: str = function) -> torch.Tensor:
            return MEASURES[function](model, texts, template=template, run=QUIET).values

        # In a process of its own: this one holds on to memory of earlier runs.
        apart = [sys.executable, __file__, "--resources", name, function]
        spent = subprocess.run(apart, check=True, capture_output=True, text=True).stdout
        yield {
            "name": name,
            "shape": description,
            "measure": function,
            "heads": len(heads),
            **times(model, batch, heads, ships, scan),
            **json.loads(spent.splitlines()[-1]),
            "least_flops": least_flops(model, batch, ships),
        }


def resources(name: str, function: str) -> dict[str, Any]:
    """Peak memory beyond the model and arithmetic, of one scan."""
    model, texts, template, _ = prepare(name)
    counter = FlopCounterMode(display=False)

    def scan() -> None:
        with counter:
            MEASURES[function](model, texts, template=template, run=QUIET)

    peak = peak_memory(scan)
    return {"peak_bytes": peak, "flops": counter.get_total_flops()}


def times(
    model: Any, batch: PromptBatch, heads: list[Head], ships: bool, scan: Callable[[], torch.Tensor]
) -> dict[str, Any]:
    """Seconds for all heads: ours, and of both loops from a sample, before and after ours."""
    sample = heads[:: max(1, len(heads) // LOOP_HEADS)]
    loop(model, batch, sample[:1], ships)
    ours, batched, largest = [], [], 0.0
    started = time.perf_counter()
    while not ours or (time.perf_counter() - started < REPEAT_SECONDS and len(ours) < 20):
        before, first = timed(lambda: loop(model, batch, sample[::2], ships))
        seconds, found = timed(scan)
        after, second = timed(lambda: loop(model, batch, sample[1::2], ships))
        ours.append(seconds)
        batched.append((before + after) / (len(sample) + 2) * (len(heads) + 1))
        pairs = [*zip(sample[::2], first, strict=True), *zip(sample[1::2], second, strict=True)]
        largest = max(largest, *(abs(float(found[head]) - score) for head, score in pairs))
    few, count = sample[::4], len(batch.prompts)
    prompts = [only(batch, at) for at in range(0, count, max(1, count // 8))]
    seconds, _ = timed(lambda: [loop(model, prompt, few, True) for prompt in prompts])
    b = seconds / (len(few) + 1) / len(prompts) * (len(heads) + 1) * count
    a = statistics.median(batched)
    seconds = statistics.median(ours)
    return {
        "seconds": seconds,
        "batched_loop_seconds": a,
        "single_loop_seconds": b,
        "over_batched": a / seconds,
        "over_single": b / seconds,
        "largest_difference": largest,
    }


@torch.no_grad()
def loop(model: Any, batch: PromptBatch, heads: list[Head], ships: bool) -> list[float]:
    """Scores heads one at a time with whole passes, as a user of TransformerLens writes it.

    It takes one pass more than there are heads: of the original model.
    """
    padded = {} if batch.mask.all() else {"attention_mask": batch.mask}
    length = batch.tokens.shape[1]
    visible = (
        torch.tril(torch.ones(length, length, device=batch.tokens.device)) * batch.mask[:, None]
    )
    uniform = visible / visible.sum(-1, keepdim=True).clamp(min=1)

    def run(hooks: list[Any]) -> torch.Tensor:
        if ships:
            logits = model.run_with_hooks(batch.tokens, fwd_hooks=hooks, **padded)
            return logits[:, -1].log_softmax(-1)
        stop = model.cfg.n_layers
        resid = model.run_with_hooks(batch.tokens, fwd_hooks=hooks, stop_at_layer=stop, **padded)
        last = model.ln_final(resid[:, -1:])[:, 0].double()
        return torch.linalg.svd(last, full_matrices=False)[0][:, 0]

    original, scores = run([]), []
    for layer, head in heads:

        def ablate(pattern: torch.Tensor, hook: Any, head: int = head) -> torch.Tensor:
            pattern[:, head] = uniform
            return pattern

        ablated = run([(f"blocks.{layer}.attn.hook_pattern", ablate)])
        if ships:
            divergence = (original.exp() * (original - ablated)).sum(-1).mean()
            scores.append(float(divergence))
        else:
            cosine = (original @ ablated).abs().clamp(max=1)
            scores.append(float(cosine.arccos()))
    return scores


def only(batch: PromptBatch, at: int) -> PromptBatch:
    """One prompt, without padding."""
    own = batch.mask[at].bool()
    return PromptBatch(
        batch.prompts[at : at + 1],
        batch.template,
        batch.tokens[at : at + 1, own],
        batch.mask[at : at + 1, own],
    )


def least_flops(model: Any, batch: PromptBatch, ships: bool) -> float:
    """The least floating point operations of matrix products that exact scores take.

    Each token once for each head it must be run for: what all prompts share, once; causal
    attention without its masked half; a head's own layer without attention; one query in the last
    layer; in Ships the unembedding of the last tokens. The run without ablation comes on top.
    """
    config = model.cfg
    width, layers = config.d_model, config.n_layers
    key_heads = config.n_key_value_heads or config.n_heads
    queries, keys = width * config.n_heads * config.d_head, width * key_heads * config.d_head
    mlp = (3 if config.gated_mlp else 2) * width * config.d_mlp
    lengths, prefix = batch.mask.sum(1).tolist(), batch.shared_prefix
    count = len(lengths)
    if count == 1:
        prefix = 0
    tokens = prefix + sum(lengths) - count * prefix
    pairs = prefix * (prefix + 1) / 2 + sum(
        (n * (n + 1) - prefix * (prefix + 1)) / 2 for n in lengths
    )
    a_pair = 2 * config.n_heads * config.d_head
    whole = tokens * (2 * queries + 2 * keys + mlp) + pairs * a_pair
    own = tokens * (config.d_head * width + mlp)
    last = tokens * 2 * keys + count * (2 * queries + mlp) + sum(lengths) * a_pair
    own_last = count * (config.d_head * width + mlp)
    unembedding = count * width * config.d_vocab if ships else 0
    baseline = (layers - 1) * whole + last + unembedding
    a_head = [own + (layers - 2 - layer) * whole + last for layer in range(layers - 1)] + [own_last]
    return 2 * (baseline + config.n_heads * (sum(a_head) + layers * unembedding))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def peak_memory(function: Callable[[], Any]) -> int | None:
    """How much the process grows at most while a function runs; known on Linux only."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    gc.collect()
    before = psutil.Process().memory_info().rss
    clear.write_text("5")
    function()
    peak = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(peak.split()[1]) * 1024 - before


def growth() -> dict[str, list[dict[str, float]]]:
    """Seconds of generalized Ships as prompts, heads and the shared prefix grow."""
    base = Shape(6, 8, 512, 1408, 8000, prompts=16, tokens=24)
    model = base.model()
    found: dict[str, list[dict[str, float]]] = {"prompts": [], "heads": [], "prefix": []}

    def seconds(shape: Shape, run: sh.Run = QUIET, **settings: Any) -> float:
        texts, told = shape.texts(), {"template": "direct", "run": run, **settings}
        return statistics.median(
            timed(lambda: sh.generalized_ships(model, texts, **told))[0] for _ in range(3)
        )

    for prompts in (2, 4, 8, 16, 32, 64):
        found["prompts"].append(
            {"prompts": prompts, "seconds": seconds(replace(base, prompts=prompts))}
        )
    for count in (1, 2, 4, 8):
        heads = [(layer, head) for layer in range(6) for head in range(count)]
        found["heads"].append({"heads": len(heads), "seconds": seconds(base, candidates=heads)})
    for prefix in (0, 16, 32, 64, 128, 256):
        shape = replace(base, prefix=prefix)
        row = {"prefix": prefix, "seconds": seconds(shape)}
        row["seconds_not_shared"] = seconds(shape, UNSHARED)
        found["prefix"].append(row)
    print(json.dumps(found), flush=True)
    return found


@dataclass(frozen=True)
class WholeLayers(sh.UndifferentiatedAttention):
    """The same ablation, for which the scan takes nothing apart but the layers below the head."""

    def separable(self, model: Any) -> bool:
        """Said not to be, though it is."""
        return False


def steps() -> dict[str, dict[str, float]]:
    """Seconds as one short cut after the other is taken, and those that the limit would take.

    The limit is the least arithmetic at the rate of large matrix products, measured here too.
    """
    base = Shape(12, 8, 512, 1408, 8000, prompts=32, tokens=24)
    model = base.model()
    heads = [(layer, head) for layer in range(base.layers) for head in range(base.heads)]
    found = {}
    for name, shape in (("no shared prefix", base), ("128 shared", replace(base, prefix=128))):
        texts = shape.texts()
        batch = encode(model, texts, "direct")

        def scan(texts: list[str] = texts, **settings: Any) -> float:
            again = {"template": "direct", "run": QUIET, **settings}
            return timed(lambda: sh.generalized_ships(model, texts, **again))[0]

        sample = heads[::8]
        loop(model, batch, sample[:1], False)
        by_hand = timed(lambda batch=batch, sample=sample: loop(model, batch, sample, False))[0]
        found[name] = {
            "loop of whole passes (a)": by_hand / (len(sample) + 1) * (len(heads) + 1),
            "resumed at the head's layer": scan(ablation=WholeLayers()),
            "own layer without attention, last layer for one query": scan(run=UNSHARED),
        }
        if shape.prefix:
            found[name]["shared prefix run once a head"] = scan()
        limit = least_flops(model, batch, ships=False) / matrix_rate("cpu", torch.float32, 1536)
        found[name]["limit: least arithmetic at the machine's matrix rate"] = limit
    print(json.dumps(found), flush=True)
    return found


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations a second in large matrix products, at best."""
    one, seconds = torch.randn(size, size, device=device).to(dtype), []
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(one, one)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


HEADER = """\
| shape | measure | seconds | over (a) | over (b) | arithmetic / least | peak MiB | differs by |
|---|---|---|---|---|---|---|---|"""


def line(row: dict[str, Any]) -> str:
    """A row of the table, in Markdown."""
    peak = "?" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
    cells = [
        row["shape"],
        row["measure"],
        f"{row['seconds']:.3g}",
        f"{row['over_batched']:.2f}",
        f"{row['over_single']:.1f}",
        f"{row['flops'] / row['least_flops']:.2f}",
        peak,
        f"{row['largest_difference']:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def save(path: Path, record: dict[str, Any]) -> None:
    """Writes the JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Interchange over all heads against one exact scan, and against the loop that users write.

python benchmarks/interchange.py                # a part of make bench
python benchmarks/interchange.py --shape tiny
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

import safehead_tl as sh
from safehead_tl.prompts import PromptBatch, encode
from scan import LOOP_HEADS, QUIET, Head, timed
from shapes import SHAPES

OPENINGS = sh.Openings(refusal=(1, 2, 3), compliance=(4, 5, 6))


def main() -> None:
    """Measures, and prints a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="12-layers", choices=[*SHAPES])
    shape = SHAPES[parser.parse_args().shape]
    model, texts = shape.model(), shape.texts()
    others = [" ".join([*text.split()[1:], text.split()[0]]) for text in texts]
    with torch.no_grad():
        pairs = in_order(model, texts, others)
    batches = [encode(model, some, "direct") for some in pairs]
    heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
    sample = heads[:: max(1, len(heads) // LOOP_HEADS)]
    loop(model, batches, sample[:1])
    told = {"template": "direct", "run": QUIET}
    before, first = timed(lambda: loop(model, batches, sample[::2]))
    scan, _ = timed(lambda: sh.ships(model, pairs[0], **told))
    ours, found = timed(lambda: sh.interchange(model, *pairs, openings=OPENINGS, **told))
    again, _ = timed(lambda: sh.ships(model, pairs[0], **told))
    after, second = timed(lambda: loop(model, batches, sample[1::2]))
    by_hand = (before + after) / (len(sample) + 2) * (len(heads) + 1)  # with the donors' runs
    shares = [*zip(sample[::2], first, strict=True), *zip(sample[1::2], second, strict=True)]
    apart = max(
        abs(float(scores.values[head]) - share)
        for head, both in shares
        for scores, share in zip((found.necessity, found.sufficiency), both, strict=True)
    )
    one = statistics.mean((scan, again))
    print("| shape | seconds | of one exact scan of Ships | loop, of ours | differs by |")
    print("|---|---|---|---|---|")
    print(f"| {shape} | {ours:.1f} | {ours / one:.2f} | {by_hand / ours:.2f} | {apart:.1e} |")


def in_order(model: Any, texts: list[str], others: list[str]) -> tuple[list[str], list[str]]:
    """Both sets, first the one that this random model refuses more."""
    gaps = [
        odds(model(encode(model, some, "direct").tokens)[:, -1]).mean() for some in (texts, others)
    ]
    return (texts, others) if gaps[0] > gaps[1] else (others, texts)


def odds(logits: torch.Tensor) -> torch.Tensor:
    """Refusal log-odds."""
    first, second = (
        logits[:, list(ids)].logsumexp(-1) for ids in (OPENINGS.refusal, OPENINGS.compliance)
    )
    return first - second


@torch.no_grad()
def loop(model: Any, batches: list[PromptBatch], heads: list[Head]) -> list[list[float]]:
    """Necessity and sufficiency of heads, one at a time, as a user of TransformerLens writes it."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in {layer for layer, _ in heads}]
    runs = [model.run_with_cache(batch.tokens, names_filter=names) for batch in batches]
    before = [odds(logits[:, -1]) for logits, _ in runs]
    gap, found = (before[0] - before[1]).mean(), []
    for layer, head in heads:
        shares = []
        for way in (0, 1):
            donor = runs[1 - way][1][f"blocks.{layer}.attn.hook_z"]

            def swap(z: torch.Tensor, hook: Any, donor: torch.Tensor = donor) -> torch.Tensor:
                z[:, :, head] = donor[:, :, head]  # noqa: B023
                return z

            hooks = [(f"blocks.{layer}.attn.hook_z", swap)]
            logits = model.run_with_hooks(batches[way].tokens, fwd_hooks=hooks)[:, -1]
            fall = (before[way] - odds(logits)).mean() / gap
            shares.append(float(fall if way == 0 else -fall))
        found.append(shares)
    return found


if __name__ == "__main__":
    main()

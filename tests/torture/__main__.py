"""Kills, damages and full disks, by a seed, and what became of what they met.

    PYTHONPATH=tests python -m torture             # everything, some minutes: make torture
    PYTHONPATH=tests python -m torture --write     # and its table into docs/limits.md
    PYTHONPATH=tests python -m torture --only run.json --times 20 --seed 7

Ends with 1 if anything was wrong, and shows what.
"""

import argparse
import collections
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import torch
import transformers

from torture.campaigns import CAMPAIGNS, References, warm

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
BEGIN, END = "<!-- torture -->\n", "<!-- end -->\n"
HEAD = (
    "| what was done | times | as if nothing had been | refused in a sentence | traceback | "
    "wrong or hung |\n|---|---:|---:|---:|---:|---:|\n"
)


def row(name, counts):
    """A line of the table."""
    tried = sum(counts.values()) - counts["kill"]
    kills = f" ({counts['kill']} kills)" if counts["kill"] > tried else ""
    cells = (counts["right"], counts["refused"], counts["raw"], counts["wrong"] + counts["hung"])
    return f"| {name} | {tried}{kills} | {' | '.join(map(str, cells))} |\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a campaign's name")
    parser.add_argument("--times", type=int, help="instead of a campaign's own number")
    parser.add_argument("--write", action="store_true", help="the table into docs/limits.md")
    chosen = parser.parse_args()
    if chosen.write and (chosen.only or chosen.times):
        parser.error("--write: the table is of all campaigns, at their own numbers")
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    warm()
    lines, bad = [], 0
    with tempfile.TemporaryDirectory() as folder:
        whole = References(Path(folder))
        for number, (name, (campaign, times)) in enumerate(CAMPAIGNS.items()):
            if chosen.only not in name:
                continue
            started, counts = time.perf_counter(), collections.Counter()
            place = Path(folder) / str(number)
            place.mkdir()
            draw = random.Random(f"{chosen.seed} {name}")
            for ended, case in campaign(draw, chosen.times or times, place, whole):
                counts[ended] += 1
                if ended in ("raw", "wrong", "hung"):
                    bad += 1
                    print(f"{ended}: {case}\n", file=sys.stderr, flush=True)
            lines.append(row(name, counts))
            print(f"{lines[-1].strip()} {time.perf_counter() - started:.0f} s", flush=True)
    if chosen.write:
        before, _, after = PAGE.read_text("utf-8").partition(BEGIN)
        _, _, after = after.partition(END)
        table = HEAD + "".join(lines)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf-8")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()

"""How much of their time replicas that share a run wait, if some are slow and some die.

    python benchmarks/cluster_simulation.py    # a table of 20 seeds; a minute or two

A simulation, in the way in which shards take pieces: each begins at its own share of the list,
takes the next piece that nobody holds, and takes over what a dead one held when that has expired.
One replica in ten is drawn to take three times as long; in one piece of a hundred the replica dies
at a random moment and another starts. Pieces are those of a scan of 80 layers: one of the first
layer takes 80 times as long as one of the last. Waiting is time with nothing to do, at pieces that
were lost, and until another replica is ready, of all replicas' time.
"""

from __future__ import annotations

import argparse
import statistics

from safehead_tl.cluster import Trouble, share

REPLICAS, LAYERS, START = 64, 80, 120.0


def pieces(each: int, mean: float) -> list[float]:
    """So many a replica, of so many seconds on average."""
    count = REPLICAS * each
    layers = [LAYERS - number * LAYERS // count for number in range(count)]
    return [mean * layer / statistics.fmean(layers) for layer in layers]


def waiting(each: int, mean: float, seeds: int, expiry: float = 60.0) -> list[float]:
    """The share of the time that is spent waiting, by seed, in ascending order."""
    work, trouble = pieces(each, mean), Trouble(expiry=expiry)
    return sorted(
        share(work, REPLICAS, start=START, trouble=trouble, seed=seed).waiting
        for seed in range(seeds)
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    means = (15, 60, 240, 960)
    print("| pieces a replica | " + " | ".join(f"{mean} s a piece" for mean in means) + " |")
    print("|---" * (len(means) + 1) + "|")
    for each in (5, 10, 20, 40, 80):
        cells = []
        for mean in means:
            found = waiting(each, mean, seeds)
            low, high = found[0], found[-1]
            cells.append(f"{statistics.fmean(found):.1%} ({low:.1%} to {high:.1%})")
        print(f"| {each} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

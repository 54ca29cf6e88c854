"""Shards and replicas on the cores of one machine, against one process; and what kills cost.

    python benchmarks/cluster.py --part speed
    python benchmarks/cluster.py --part kills

`speed`: exact Ships of a random model of 128 heads, by one process, by 1, 2 and 4 shards, and by 1
and 2 Ray replicas, all with one thread each and the same `max_rows`. Shards begin together when
their models are loaded; the time of Ray counts from the call, cluster and loading included, and is
also given from when the first replica is at work. `kills`: scans in which one shard, one actor or
the driver of actors is killed at a random moment and, but for the actor, started again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safehead_tl.cluster import share
from safehead_tl.models import load_model
from safehead_tl.results import load_result

WORKER = """
import os, sys, time, torch
import safehead_tl as sh
from safehead_tl.scan import leases
from safehead_tl.scan.ledger import Ledger

def scan(model, prompts, log, run):
    leases.EXPIRY, true = 2.0, Ledger._computed
    def counted(self, work):
        found = true(self, work)
        with open(log, "a") as file:
            file.write(work.name + chr(10))
        return found
    if log:
        Ledger._computed = counted
    return sh.ships(model, prompts, template="direct", run=run)

def main():
    torch.set_num_threads(1)
    model_dir, run_dir, on, replicas, log, go, rows, prompts = sys.argv[1:]
    texts = sh.load_prompts("demo/harmful", limit=int(prompts))
    model, began = sh.load_model(model_dir), []
    sh.ships(model, texts[:2], candidates=["L0H0"], template="direct", run=sh.Run(progress=False))
    print("ready", flush=True)
    while go and not os.path.exists(go):
        time.sleep(0.005)
    started = time.time()
    run = sh.Run(
        run_dir=run_dir, on=on or None, max_rows=int(rows),
        progress=lambda *_: began or began.append(time.time()),
    )
    told = {"model": model, "prompts": texts, "log": log, "run": run}
    import worker  # by its name, as actors know it
    scores = (sh.Ray(int(replicas)).call if replicas != "0" else lambda call, told: call(**told))(
        worker.scan, told
    )
    ended = time.time()
    torch.save(scores.per_prompt, run_dir + "." + on.replace("/", "-") + "result")
    print("took", ended - started, ended - (began[0] if replicas != "0" else started))

if __name__ == "__main__":
    main()
"""


def main() -> None:
    """Runs a part and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["speed", "kills"], default="speed")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=20)
    chosen = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        part = Part(home, _model(home / "model"), chosen.rows, chosen.prompts)
        part.worker.write_text(WORKER)
        found = part.speed(chosen.rounds) if chosen.part == "speed" else part.kills(chosen.runs)
    print(json.dumps(found, indent=1))


def _model(path: Path) -> Path:
    """A random model of 8 layers and 128 heads, with the words of the embedded organism."""
    torch.manual_seed(0)
    tokenizer = load_model("demo").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=256,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class Part:
    """Processes of one machine that scan one model."""

    def __init__(self, home: Path, model: Path, rows: int, prompts: int):
        self.home, self.model, self.rows, self.prompts = home, model, rows, prompts
        self.worker = home / "worker.py"

    def start(self, run: str, on: str = "", replicas: int = 0, go: str = "", log: str = ""):
        """One process of a run."""
        told = [self.model, self.home / run, on, replicas, log, go, self.rows, self.prompts]
        return subprocess.Popen(
            [sys.executable, self.worker, *map(str, told)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(self.home), *sys.path])},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def result(self, run: str) -> torch.Tensor:
        """What the first process that finished has saved."""
        return torch.load(next(self.home.glob(f"{run}.*result")))

    def timed(self, run: str, team: int, replicas: int = 0) -> tuple[float, float]:
        """Seconds from when all are ready to the last one's end; and without a cluster's start."""
        go = self.home / f"go-{run}"
        ons = [f"{one}/{team}" for one in range(1, team + 1)] if team else [""]
        working = [self.start(run, on, replicas, str(go)) for on in ons]
        for one in working:
            assert one.stdout.readline().startswith("ready")
        go.touch()
        told = [one.communicate()[0].split() for one in working]
        return max(float(each[-2]) for each in told), max(float(each[-1]) for each in told)

    def speed(self, rounds: int) -> dict[str, object]:
        """One process, shards and replicas in turn, several times: the medians."""
        taken: dict[str, list[float]] = {}
        for number in range(rounds):
            for team in (0, 1, 2, 4):
                seconds, _ = self.timed(f"{number}-shards-{team}", team)
                taken.setdefault(f"{team} shards" if team else "one process", []).append(seconds)
            for replicas in (1, 2):
                whole, working = self.timed(f"{number}-ray-{replicas}", 0, replicas)
                taken.setdefault(f"{replicas} replicas, with the cluster", []).append(whole)
                taken.setdefault(f"{replicas} replicas, at work", []).append(working)
        runs = [run.parent.name for run in self.home.glob("*/run.json")]
        same = sum(torch.equal(self.result(run), self.result(runs[0])) for run in runs)
        files = sorted(
            (self.home / "0-shards-0" / "pieces").glob("*.safetensors"),
            key=lambda file: file.stat().st_mtime_ns,
        )
        each = [load_result(file, "piece")[1]["cost"]["seconds"] for file in files]
        start = taken["one process"][0] - sum(each)
        pieces = len(files)
        median = {name: statistics.median(some) for name, some in taken.items()}
        alone = median["one process"]
        return {
            "pieces": pieces,
            "seconds": {name: round(value, 2) for name, value in median.items()},
            "times as fast": {name: round(alone / value, 2) for name, value in median.items()},
            "2 shards, simulated from one process, s": round(
                share(each, 2, start=start).seconds, 2
            ),
            "overhead a piece, ms": round(1e3 * (median["1 shards"] - alone) / pieces, 2),
            "bit-identical": f"{same} of {len(runs)}",
        }

    def kills(self, runs: int) -> dict[str, object]:
        """Scans with a kill each, of a shard, an actor or a driver in turn."""
        seconds, _ = self.timed("alone", 0)
        draw, same, twice, pieces = random.Random(0), 0, [], 0
        for number in range(runs):
            run, log = f"killed-{number}", self.home / f"log-{number}"
            what = ("shard", "shard", "actor", "driver")[number % 4]
            ended = (self.kill_shard if what == "shard" else self.kill_in_ray)(
                run, str(log), what, draw, seconds
            )
            names = log.read_text().split()
            pieces = len(set(names))
            twice.append(len(names) - pieces)
            same += ended and torch.equal(self.result(run), self.result("alone"))
            print(f"{number + 1}: {what}, {twice[-1]} pieces twice", file=sys.stderr, flush=True)
        return {
            "same bytes": f"{same} of {runs}",
            "pieces of a scan": pieces,
            "computed twice": f"{sum(twice)} of {pieces * runs}, at most {max(twice)} in a run",
        }

    def kill_shard(self, run: str, log: str, _: str, draw: random.Random, seconds: float) -> bool:
        """Two shards, one of which dies while it works, and is not started again."""
        team = [self.start(run, f"{one}/2", log=log) for one in (1, 2)]
        for one in team:
            one.stdout.readline()
        time.sleep(draw.uniform(0.05, 0.45) * seconds)
        victim = draw.randrange(2)
        os.killpg(team[victim].pid, signal.SIGKILL)
        team[victim].wait()
        team[1 - victim].communicate()
        return team[1 - victim].returncode == 0

    def kill_in_ray(
        self, run: str, log: str, what: str, draw: random.Random, seconds: float
    ) -> bool:
        """Two replicas, of which one dies, or where the driver dies and is started again."""
        driver = self.start(run, replicas=2, log=log)
        pieces = self.home / run / "pieces"
        while not list(pieces.glob("*.safetensors")):
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.4) * seconds)
        if what == "driver":
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            driver = self.start(run, replicas=2, log=log)
        else:
            actors = subprocess.run(
                ["pgrep", "-f", "ray::Replica"], capture_output=True, text=True, check=False
            ).stdout.split()
            os.kill(int(draw.choice(actors)), signal.SIGKILL)
        driver.communicate()
        return driver.returncode == 0


if __name__ == "__main__":
    main()

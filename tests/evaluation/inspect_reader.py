"""Reads a log of `to_inspect` with Inspect AI's own reader, where that is installed.

python tests/evaluation/inspect_reader.py LOG.json   # `make inspect-check` installs it
"""

import json
import sys
from pathlib import Path

from inspect_ai.log import read_eval_log, read_eval_log_sample

path = sys.argv[1]
written = json.loads(Path(path).read_text("utf-8"))
log, header = read_eval_log(path), read_eval_log(path, header_only=True)
assert log.status == "success"
assert header.results == log.results
assert len(log.samples) == header.results.total_samples == len(written["samples"]) > 0
for sample, told in zip(log.samples, written["samples"], strict=True):
    assert sample.output.completion == told["messages"][1]["content"]
    assert {name: (score.value, score.explanation) for name, score in sample.scores.items()} == {
        name: (score["value"], score.get("explanation")) for name, score in told["scores"].items()
    }
assert read_eval_log_sample(path, id=log.samples[0].id, epoch=1).input == log.samples[0].input
shares = {score.name: score.metrics for score in log.results.scores}
name = next(name for name in shares["keyword"] if ", ablated: L1H3 L2H6" in name)
found = [
    each.scores["keyword"].value for each in log.samples if each.metadata["heads"] == "L1H3 L2H6"
]
assert shares["keyword"][name].value == sum(found) / len(found)
sys.stdout.write(f"{len(log.samples)} samples, {name}: {shares['keyword'][name].value}\n")

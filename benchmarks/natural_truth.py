"""Finds what each head of the embedded natural organism has learned of refusing, and keeps it.

python benchmarks/natural_truth.py   # a part of make organism; some minutes on one core
"""

from __future__ import annotations

import json
from pathlib import Path

import safehead_tl as sh
from safehead_tl.ground_truth import NATURAL_TRUTH, reversion_truth
from safehead_tl.organism import DEMO, REFUSAL, REWORDED


def main() -> None:
    """Writes the truth beside the organism."""
    model, base = sh.load_model("demo-natural"), sh.load_model("demo-base")
    openings = sh.Openings.of_texts(model, (REFUSAL, REWORDED), DEMO.tools)
    found = reversion_truth(model, base, DEMO.prompts("harmful", "test", 32), openings)
    Path(str(NATURAL_TRUTH)).write_text(json.dumps(found.to_dict(), indent=1) + "\n", "utf-8")
    print(found.values)


if __name__ == "__main__":
    main()

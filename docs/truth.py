"""Writes the tables of docs/ground_truth.md from what `make bench-truth` has kept.

make bench-truth
python docs/truth.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from safehead_tl.ground_truth import COMPILED, KINDS, GroundTruth, ground_truth

DOCS = Path(__file__).parent
KEPT = DOCS.parent / "build" / "ground-truth"
OBJECTIVES = {"UA": "UA", "none": "no ablation", "zero": "zero", "reversion": "reversion"}
BESIDE = ("Ships, UA", "Ships, SC", "generalized, UA", "log-odds, SC", "interchange: necessity")
NATURAL = ("average precision", "precision@3", "Spearman", "regret UA @2", "regret SC @2")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def precision(found: GroundTruth, kind: str) -> dict[str, str]:
    """Every contestant's mean average precision on a kind."""
    return {one.contestant: one.told("average precision")[:4] for one in found.summaries(kind)}


def learned(found: GroundTruth) -> str:
    """What planting under an ablation does."""
    broken = {row["kind"]: row for row in found.broken()}
    rows = []
    for objective, told in OBJECTIVES.items():
        for planted, kind in enumerate(("one", "sharing"), 1):
            name = kind if objective == "UA" else f"{kind}, {objective}"
            count, scores = found.count(name), precision(found, name)
            row = broken[f"{name} ({count})"]
            rows.append(
                [
                    told,
                    f"{planted} ({count})",
                    row["UA"],
                    row["SC"],
                    *[scores[one] for one in BESIDE],
                ]
            )
    columns = ["learned under", "planted", "ASR, benign after UA", "ASR, benign after SC", *BESIDE]
    return table(columns, rows)


def by_kind(found: GroundTruth, natural: Sequence[str]) -> str:
    """Average precision by kind, and cost."""
    planted = [kind for kind in found.kinds if kind in KINDS and kind not in natural]
    columns = {name: f"{name}, UA" if name in ("one", "sharing") else name for name in planted}
    columns |= {name: f"natural: {name}" for name in natural}
    scores = [precision(found, kind) for kind in columns]
    names = [one.contestant for one in found.summaries(*natural)]
    rows = [[one, *[each[one] for each in scores], f"{found.passes[one]:.0f}"] for one in names]
    return table(["contestant", *columns.values(), "passes"], rows)


def on_natural(found: GroundTruth, natural: Sequence[str]) -> str:
    """All that is reported of natural organisms."""
    rows = found.table(*natural, metrics=NATURAL)
    keys = ["contestant", *NATURAL, "p against the first"]
    return table([*keys[:-1], "p"], [[row[key] for key in keys] for row in rows])


def on_compiled(found: GroundTruth) -> str:
    """The ranks of the wanted heads, and of decoys."""
    outcomes = {(one.contestant, one.kind): one for one in found.outcomes}
    rows = []
    for name in [one.contestant for one in found.summaries(*COMPILED)]:
        cells = []
        for kind in COMPILED:
            one = outcomes[name, kind]
            place = {head: str(rank) for rank, head in enumerate(one.order, 1)}
            decoys = ", ".join(place[head] for head in sorted(one.decoys))
            wanted = ", ".join(place[head] for head in sorted(one.wanted))
            cells.append(wanted + (f" ({decoys})" if decoys else ""))
        rows.append([name, *cells])
    return table(["contestant", *[kind.removeprefix("compiled: ") for kind in COMPILED]], rows)


def main() -> None:
    """Writes each table in the place of the one that begins with the same columns."""
    found = ground_truth(KEPT)
    natural = found.sources["natural"]
    page = DOCS / "ground_truth.md"
    text = page.read_text("utf-8")
    tables = [
        learned(found),
        by_kind(found, natural),
        on_natural(found, natural),
        on_compiled(found),
    ]
    for new in tables:
        head = "|".join(new.split("\n", 1)[0].split("|")[:3])
        text, count = re.subn(
            rf"{re.escape(head)}[^\n]*\n(\|[^\n]*\n)+", lambda _, new=new: new + "\n", text
        )
        assert count == 1, (head, count)
    page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()

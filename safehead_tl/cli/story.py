"""The paper in miniature: find the heads that the embedded organism was trained to refuse with."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from safehead_tl.heads import Head
from safehead_tl.measures import sahara, ships
from safehead_tl.models import Model, load_model, single_thread
from safehead_tl.organism import Behaviour, measure_behaviour
from safehead_tl.prompts import load_prompts
from safehead_tl.results import HeadGroup, HeadScores
from safehead_tl.scan import Run
from safehead_tl.writing import check_file, said_plainly, write_page

GROUP_SIZE = 3
PAGE = "heatmap.html"
SAVED = ("ships-undifferentiated.safetensors", "ships-scaling.safetensors", "sahara.safetensors")


@dataclass(frozen=True)
class Demo:
    """Everything that the demo found.

    Behaviours are those of the base model and of the organism: as it is, with Sahara's first head
    ablated, its first two, and so on (`steps`), with its first two scaled, and with as many others
    ablated.
    """

    planted: tuple[Head, ...]
    ua: HeadScores
    sc: HeadScores
    group: HeadGroup
    base: Behaviour
    aligned: Behaviour
    steps: tuple[Behaviour, ...]
    scaled: Behaviour
    control: Behaviour
    files: tuple[Path, ...]
    data_bytes: int
    seconds: float

    @property
    def behaviours(self) -> tuple[Behaviour, ...]:
        """All of them, in this order."""
        return (self.base, self.aligned, *self.steps, self.scaled, self.control)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "planted": [str(head) for head in self.planted],
            "ships": {"undifferentiated": self.ua.to_dict(), "scaling": self.sc.to_dict()},
            "sahara": self.group.to_dict(),
            "behaviours": [behaviour.to_dict() for behaviour in self.behaviours],
            "data_bytes": self.data_bytes,
            "seconds": self.seconds,
        }


@single_thread()
def run_demo(out: str | Path, *, overwrite: bool = False, progress: bool = True) -> Demo:
    """Finds the embedded organism's safety heads, and ablates them; `out` gets what it writes."""
    started = time.perf_counter()
    out = Path(out)
    page, *saved = written = [out / name for name in (PAGE, *SAVED)]
    with said_plainly(out):
        out.mkdir(parents=True, exist_ok=True)
    for file in written:
        check_file(file, overwrite=overwrite)
    planted = planted_heads()
    model, base = load_model("demo"), load_model("demo-base")
    prompts = load_prompts("demo/harmful")
    run = Run(progress=progress)
    ua = ships(model, prompts, ablation="undifferentiated", run=run)
    sc = ships(model, prompts, ablation="scaling", run=run)
    group = sahara(model, prompts, GROUP_SIZE, run=run)
    pair = group.heads[:2]
    others = _other_heads(model, {*planted, *group.heads}, len(pair))
    for file, result in zip(saved, (ua, sc, group), strict=True):
        result.save(file, overwrite=overwrite)
    drawn = ua.heatmap(marked=planted, marked_as="planted")
    write_page(page, drawn.to_html(), overwrite=overwrite)
    return Demo(
        planted=planted,
        ua=ua,
        sc=sc,
        group=group,
        base=measure_behaviour(base, "base"),
        aligned=measure_behaviour(model, "aligned"),
        steps=tuple(
            measure_behaviour(model, f"aligned, UA on {_listed(heads)}", heads)
            for heads in (group.heads[:size] for size in range(1, GROUP_SIZE + 1))
        ),
        scaled=measure_behaviour(model, f"aligned, SC on {_listed(pair)}", pair, "scaling"),
        control=measure_behaviour(model, f"control, UA on {_listed(others)}", others),
        files=tuple(written),
        data_bytes=_embedded_bytes(),
        seconds=time.perf_counter() - started,
    )


def planted_heads() -> tuple[Head, ...]:
    """The heads that the embedded organism was trained with."""
    text = (files("safehead_tl") / "data" / "organism" / "organism.json").read_text("utf-8")
    return tuple(Head.parse(head) for head in json.loads(text)["recipe"]["planted"])


def _listed(heads: Sequence[Head]) -> str:
    return " ".join(map(str, heads))


def _other_heads(model: Model, excluded: set[Head], count: int) -> tuple[Head, ...]:
    pool = [
        Head(layer, head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
        if Head(layer, head) not in excluded
    ]
    return tuple(sorted(random.Random(0).sample(pool, count)))


def _embedded_bytes() -> int:
    """Size of the package data on disk."""
    with as_file(files("safehead_tl") / "data") as folder:
        return sum(len(file.read_bytes()) for file in folder.rglob("*") if file.is_file())

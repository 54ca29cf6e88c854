"""The page on which every answer of a result can be read."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import torch

from safehead_tl.evaluation import Answered
from safehead_tl.figures import filled, web_page
from safehead_tl.views.packing import raw
from safehead_tl.views.verdicts import verdict_kind
from safehead_tl.writing import check_file, write_page


def browse(
    result: Answered, out: str | Path, *, title: str | None = None, overwrite: bool = False
) -> Path:
    """Writes the page; as `Answered.browse`."""
    path = Path(out).expanduser()
    check_file(path, ".html", overwrite=overwrite)
    data, told = _page_data(result), result.provenance
    name = Path(str(told.model["name"])).name
    lead = (
        f"{len(data['items'])} prompts in {len(data['conditions'])} conditions, judged by "
        f"{', '.join(data['judges'])}. Answers may be harmful: they are "
        "covered until you show them."
    )
    written = bytearray(json.dumps(data, separators=(",", ":")).encode())
    parts = {
        "title": html.escape(title or f"Answers of {name}"),
        "lead": html.escape(lead),
        "settings": html.escape(json.dumps(told.to_dict(), indent=1, default=str)),
        "data": raw(torch.frombuffer(written, dtype=torch.uint8)),
    }
    styles, scripts = ("draw.css", "report.css", "browse.css"), ("draw.js", "browse.js")
    write_page(path, filled("browse.html", parts | web_page(styles, scripts)), overwrite=overwrite)
    return path


def _page_data(result: Answered) -> dict[str, Any]:
    """Answers by prompt and sample, each with those of all conditions in one order."""
    every = [*result.each_answer()]
    conditions = {
        name: place for place, name in enumerate(dict.fromkeys(e.condition for e in every))
    }
    items: dict[Any, dict[str, Any]] = {}
    for each in every:
        sampled = f", sample {each.sample + 1}" if each.sample else ""
        nothing = {
            "number": len(items),
            "set": each.prompts,
            "title": f"{each.prompts} prompt {each.prompt + 1}{sampled}",
            "text": each.text,
            "answers": [None] * len(conditions),
        }
        item = items.setdefault((each.prompts, each.prompt, each.sample), nothing)
        item["answers"][conditions[each.condition]] = {
            "text": each.response,
            "heads": each.heads,
            "refused": each.refused,
            "coherent": each.coherent,
            "verdicts": [
                (verdict_kind(told.success, each.refused), told.reason, told.score)
                for told in each.verdicts.values()
            ],
        }
    return {
        "conditions": [*conditions],
        "judges": [*every[0].verdicts],
        "items": [*items.values()],
    }

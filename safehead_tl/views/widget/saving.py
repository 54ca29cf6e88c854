"""What the widget shows, as a page that opens anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safehead_tl.errors import SafeheadError
from safehead_tl.models import single_thread_if_tiny
from safehead_tl.scan import Run
from safehead_tl.views.inspection import Views
from safehead_tl.views.page.data import Shown, page_data
from safehead_tl.views.page.report import write_shown
from safehead_tl.views.page.words import summary
from safehead_tl.views.widget.request import Column, Request
from safehead_tl.views.widget.state import Explorer, of_given
from safehead_tl.writing import check_file


def save_state(
    explorer: Explorer,
    shown: Mapping[str, Any],
    out: str | Path,
    title: str | None,
    overwrite: bool,
) -> Path:
    """Writes what a widget shows as a report.

    The page has its prompts, whole patterns of the heads that are shown or ablated, its ablations,
    and opens with its columns. Answers are in it if they were generated. Heads that are ablated
    together are the page's group: of several such columns the last, under its ablation.

    Raises:
        SafeheadError: if the widget shows a mistake, or the file cannot be written.
    """
    path, model = Path(out), explorer.model
    check_file(path, ".html", overwrite=overwrite)
    if "error" in shown:
        raise SafeheadError(f"there is nothing to save: {shown['error']}")
    size = (model.cfg.n_layers, model.cfg.n_heads)
    request = Request.read(shown, size, explorer.choices, explorer.batch.prompts)
    ablated = [column for column in request.columns if column.heads]
    together = [column for column in ablated if len(column.heads) > 1][-1:]
    members = together[0].heads if together else ()
    panels = [*request.shown, *(head for column in ablated for head in column.heads)]
    with single_thread_if_tiny(model):
        asked = _prompts(explorer, request, ablated)
        texts = [text for _, text in asked]
        views, labels = dict[str, Views](), dict[str, str]()
        keys = dict[tuple[str, float], str]()
        for column in [*together, *ablated] or request.columns[:1]:
            if column.ablation not in keys:
                key = column.choice.key
                key = f"{key}-{len(keys)}" if key in views else key
                keys[column.ablation] = key
                views[key], labels[key] = explorer.views(column, texts), column.words
        seen = Shown(
            views, labels, [explorer.scores], list(dict.fromkeys(panels)), None, members, "chosen",
            [number for number, _ in asked], explorer.judge,
            explorer.max_new_tokens if any("answer" in each for each in shown["columns"]) else 0,
            Run(progress=False),
        )  # fmt: skip
        data = page_data(seen, explorer.marked, explorer.marked_as)
    data["start"] = "&".join(_start(explorer, request, keys, together, asked))
    lines = [shown["status"], *summary(explorer.scores, None, None, None)]
    write_shown(path, data, explorer.scores, title, lines, overwrite=overwrite)
    return path


def _prompts(
    explorer: Explorer, request: Request, ablated: Sequence[Column]
) -> list[tuple[int | None, str]]:
    """The prompts to show, each behind its number among the given ones.

    An ablation that tells prompts apart knows them by their number, so that the ones before have
    to be shown too.
    """
    given = explorer.batch.prompts
    asked = list(dict.fromkeys((column.prompt, column.text) for column in request.columns))
    numbers = [number for number, _ in asked if number is not None]
    for column in ablated:
        if explorer.views(column, given[:1]).ablation.by_prompt:
            if len(numbers) < len(asked):
                raise SafeheadError(of_given(column))
            return list(enumerate(given[: 1 + max(numbers)]))
    return asked


def _start(
    explorer: Explorer,
    request: Request,
    keys: Mapping[tuple[str, float], str],
    together: Sequence[Column],
    asked: Sequence[tuple[int | None, str]],
) -> list[str]:
    """What the page opens with, in the parts of its address."""
    single = [column.heads[0] for column in request.columns if len(column.heads) == 1]
    top = [head for head, _ in explorer.scores.top(1)]
    parts = [str([*single, *request.shown, *top][0])]
    for letter, column in zip("abc", request.columns, strict=False):
        group = any(
            (column.heads, column.ablation) == (each.heads, each.ablation) for each in together
        )
        key = "group" if group else keys[column.ablation] if column.heads else "none"
        prompt = 1 + asked.index((column.prompt, column.text))
        parts += [f"{letter}={key}", f"prompt-{letter}={prompt}"]
        if letter == "a":
            parts.append(f"prompt={prompt}")
    return parts

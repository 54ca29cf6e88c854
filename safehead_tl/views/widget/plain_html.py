"""What the widget shows, as HTML without a script: for notebooks that have only ipywidgets.

Prompts, tokens and answers are other people's texts: all go through `html.escape`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from plotly.colors import sample_colorscale

from safehead_tl.figures import COLOURS, SEQUENTIAL

MOST_TOKENS = 32
"""Tokens whose attention is shown, the last ones: a cell of a table takes 50 bytes."""

CELL = "width:{size}px;height:{size}px;padding:0;border:1px solid transparent;background:{colour}"
PAIR = "display:flex;flex-wrap:wrap;gap:24px"
LABEL = "font:11px monospace;padding:0 4px;text-align:right;white-space:nowrap"
UPRIGHT = "writing-mode:vertical-rl;font:11px monospace;padding:2px 0"


def heatmap_html(page: Mapping[str, Any], chosen: Sequence[str]) -> str:
    """The heatmap as a table; chosen heads are outlined, marked ones have a cross."""
    layers, heads = page["shape"]["layers"], page["shape"]["heads"]
    highest = max([page["scores"][index] for index in page["ranked"][:1]], default=0) or 1
    head = "".join(f"<th style='{LABEL}'>{number}</th>" for number in range(heads))
    lines = [f"<tr><td></td>{head}</tr>"]
    for layer in range(layers):
        cells = []
        for column in range(heads):
            index, name = layer * heads + column, f"L{layer}H{column}"
            score = page["scores"][index]
            words = f"{name}: not scored" if score is None else f"{name}: {score:.3g}"
            colour = COLOURS["empty"] if score is None else _shade(score / highest)
            outline = f";outline:3px solid {COLOURS['marked']}" if name in chosen else ""
            cross = "×" if index in page["marked"] else ""
            ink = "#000" if score is not None and score > highest / 2 else "#fff"
            style = f"{CELL.format(size=20, colour=colour)};color:{ink};text-align:center{outline}"
            cells.append(f'<td style="{style}" title="{words}">{cross}</td>')
        lines.append(f"<tr><th style='{LABEL}'>{layer}</th>{''.join(cells)}</tr>")
    note = f"{page['lead']} {page['scale']} Rows are layers, columns heads, both from 0."
    if page["marked"]:
        note += f" Crosses: {page['markedAs']}."
    return f"<p>{html.escape(note)}</p><table>{''.join(lines)}</table>"


def answer_html(shown: Mapping[str, Any]) -> str:
    """Attention, next tokens and answers, original beside ablated."""
    if "error" in shown:
        return ""
    parts = [f"<p>{html.escape(note)}</p>" for note in shown["notes"]]
    tokens = shown["tokens"][-MOST_TOKENS:]
    if len(shown["tokens"]) > MOST_TOKENS and shown["patterns"]:
        parts.append(f"<p>Attention is shown among the last {MOST_TOKENS} tokens.</p>")
    for panel in shown["patterns"]:
        tables = [
            f"<div><b>{panel['head']}, {name}</b>{_pattern(panel[key], tokens)}</div>"
            for key, name in (("before", "original"), ("after", "ablated"))
        ]
        parts.append(f"<div style='{PAIR}'>{''.join(tables)}</div>")
    names = ("next token, original", "next token, ablated")
    tables = [_table(name, rows) for name, rows in zip(names, shown["next"], strict=True)]
    parts.append(f"<div style='{PAIR}'>{''.join(tables if shown['heads'] else tables[:1])}</div>")
    for name, text in zip(("original", "ablated"), shown.get("answers", ()), strict=False):
        quoted = html.escape(text) or "(nothing)"
        parts.append(f"<p><b>answer, {name}</b></p><blockquote>{quoted}</blockquote>")
    return "".join(parts)


def _pattern(rows: Sequence[Sequence[float]], tokens: Sequence[str]) -> str:
    count = len(tokens)
    shown = [row[-(number + 1) :] for number, row in enumerate(rows[-count:])]
    names = [html.escape(token) for token in tokens]
    head = "".join(f"<th style='{UPRIGHT}'>{name}</th>" for name in names)
    lines = [f"<tr><td></td>{head}</tr>"]
    for name, row in zip(names, shown, strict=True):
        cells = [
            f'<td style="{CELL.format(size=14, colour=_shade(value))}" title="{value:.0%}"></td>'
            for value in row
        ]
        lines.append(f"<tr><th style='{LABEL}'>{name}</th>{''.join(cells)}</tr>")
    return f"<table style='border-spacing:0'>{''.join(lines)}</table>"


def _table(caption: str, pairs: Sequence[tuple[str, float]]) -> str:
    rows = "".join(
        f"<tr><td style='font-family:monospace'>{html.escape(token)}</td>"
        f"<td style='text-align:right'>{_percent(share)}</td></tr>"
        for token, share in pairs
    )
    head = "<tr><th scope='col'>token</th><th scope='col'>probability</th></tr>"
    return f"<table><caption>{caption}</caption>{head}{rows}</table>"


def _percent(share: float) -> str:
    return "&lt; 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _shade(share: float) -> str:
    return _scale()[round(min(max(share, 0.0), 1.0) * 255)]


@cache
def _scale() -> list[str]:
    return sample_colorscale(SEQUENTIAL, [level / 255 for level in range(256)])

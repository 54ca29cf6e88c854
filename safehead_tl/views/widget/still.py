"""The widget's last state as a still picture, for where no kernel runs: SVG, without any script."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from plotly.colors import sample_colorscale

from safehead_tl.heads import Head

Pixels: TypeAlias = float | int
WIDTH, MARGIN, GUTTER = 760, 16, 28
MAP = 330
"""Pixels that the map of all heads takes at most; the rest of the width is for what was shown."""
LINE = 17
LETTER = 6.4
"""Pixels of a letter, rather more than on average."""
LEVELS = 32
"""Colours that are told apart: cells of one colour are one path."""
TOKENS = 5
LIVE = "What was shown last. To choose heads and prompts, run sh.explore in a notebook."
INK, QUIET, RING, EMPTY = "#333333", "#57606a", "#d55e00", "#eeeeee"
BARS = {False: "#56b4e9", True: RING}
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What may not be in XML, not even escaped."""


def still(page: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    """Draws a widget's last answer: the first map with the heads chosen, and its columns.

    Returns:
        An `svg` element of 760 pixels' width on white, with every text escaped.
    """
    sheet = _Sheet()
    top = sheet.write(page["lead"], MARGIN, MARGIN + LINE, WIDTH - 2 * MARGIN, bold=True)
    told = shown.get("error") or shown["status"]
    top = sheet.write(told, MARGIN, top, WIDTH - 2 * MARGIN) + 4
    columns = shown.get("columns", ())
    chosen = {head for column in columns for head in column["heads"]}
    ends = [_map(sheet, page, chosen, top)]
    for number, column in enumerate(columns):
        name = "ABC"[number] if len(columns) > 1 else ""
        ends.append(_column(sheet, column, name, ends[-1] if number else top))
    end = sheet.write(LIVE, MARGIN, max(ends) + 4, WIDTH - 2 * MARGIN, ink=QUIET)
    return sheet.svg(round(end + MARGIN - LINE), f"{page['lead']} {told}")


@dataclass
class _Sheet:
    parts: list[str] = field(default_factory=list)

    def write(
        self,
        text: str,
        x: Pixels,
        y: Pixels,
        room: Pixels,
        *,
        bold: bool = False,
        ink: str = INK,
        end: bool = False,
        most: int = 4,
    ) -> Pixels:
        """Writes lines of text, cut at `most`, and returns where the next one would be."""
        width = max(4, int(room / (LETTER * 1.1 if bold else LETTER)))
        style = f' fill="{ink}"' + ' font-weight="600"' * bold + ' text-anchor="end"' * end
        for line in textwrap.wrap(text, width, max_lines=most, placeholder=" …"):
            words = html.escape(FORBIDDEN.sub("\ufffd", line))
            self.parts.append(f'<text x="{x:g}" y="{y:g}"{style}>{words}</text>')
            y += LINE
        return y

    def svg(self, height: int, title: str) -> str:
        words = html.escape(FORBIDDEN.sub("\ufffd", title))
        size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{words}" '
            'style="max-width:100%;height:auto" font-family="Arial, Helvetica, sans-serif" '
            f'font-size="12"><title>{words}</title>'
            f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(self.parts)}</svg>'
        )


def _map(sheet: _Sheet, page: Mapping[str, Any], chosen: set[str], top: Pixels) -> Pixels:
    """All heads, coloured by the square root of their scores; returns where it ends."""
    layers, heads = page["shape"]["layers"], page["shape"]["heads"]
    shown, marked = page["maps"][0], page["marked"]
    size = min(26.0, (MAP - GUTTER) / heads, 460 / layers)
    left, top = MARGIN + GUTTER, top - LINE / 2
    colours, words = _colours(shown["scores"], shown["signed"])
    cells = defaultdict[str, str](str)
    for place, colour in enumerate(colours):
        layer, head = divmod(place, heads)
        x, y = left + head * size, top + layer * size
        cells[colour] += _square(x, y, size - (1 if size > 6 else 0))
        if str(Head(layer, head)) in chosen:
            cells["ring"] += _square(x - 1, y - 1, size + 1)
        if place in marked:
            near, far = 0.3 * size, 0.4 * size
            cells["cross"] += f"M{x + near:.1f} {y + near:.1f}l{far:.1f} {far:.1f}"
            cells["cross"] += f"m0 -{far:.1f}l-{far:.1f} {far:.1f}"
    lines = {name: cells.pop(name, "") for name in ("ring", "cross")}
    sheet.parts += [f'<path fill="{colour}" d="{path}"/>' for colour, path in cells.items()]
    for name, ink, width in (("cross", "#ffffff", 3), ("cross", "#b0307a", 1.5), ("ring", RING, 2)):
        style = f'fill="none" stroke="{ink}" stroke-width="{width}"'
        sheet.parts.append(f'<path {style} d="{lines[name]}"/>')
    for layer in range(0, layers, math.ceil(12 / size)):
        sheet.write(str(layer), left - 6, top + (layer + 0.5) * size + 4, 40, ink=QUIET, end=True)
    below = top + layers * size + 12
    for head in range(0, heads, math.ceil(20 / size)):
        sheet.write(str(head), left + head * size + 1, below, 40, ink=QUIET)
    words = f"{shown['words']}: {words}, square-root colours. Rows are layers, columns heads."
    words += " Framed: ablated." if chosen else ""
    words += f" Crosses: {page['markedAs']}." if marked else ""
    return sheet.write(words, MARGIN, below + LINE + 2, MAP, ink=QUIET, most=8)


def _square(x: Pixels, y: Pixels, side: Pixels) -> str:
    return f"M{x:.1f} {y:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z"


def _colours(scores: Sequence[float | None], signed: bool) -> tuple[list[str], str]:
    """Each score's colour, and what the colours mean."""
    most = max(
        (abs(score) if signed else score for score in scores if score is not None), default=0
    )
    palette = sample_colorscale("PuOr" if signed else "Cividis", LEVELS + 1)
    found = []
    for score in scores:
        if score is None:
            found.append(EMPTY)
            continue
        share = math.copysign(math.sqrt(min(abs(score) / (most or 1), 1)), score)
        found.append(palette[round(LEVELS * ((share + 1) / 2 if signed else max(share, 0)))])
    ends = f"orange −{most:.3g} to purple {most:.3g}" if signed else f"dark 0 to bright {most:.3g}"
    return found, ends


def _column(sheet: _Sheet, column: Mapping[str, Any], name: str, top: Pixels) -> Pixels:
    """What the model says next in a column, and its answer; returns where it ends."""
    left, room = MARGIN + MAP + 24, WIDTH - 2 * MARGIN - MAP - 24
    heads = ", ".join(column["heads"])
    title = (
        f"{heads} ablated: {column['words']}; KL {column['kl']:.3g} nats" if heads else "As it is"
    )
    y = sheet.write(f"{name}: {title}" if name else title, left, top, room, bold=True)
    y = sheet.write(f"Prompt: {column['text']}", left, y, room, ink=QUIET, most=3)
    for token, share in column["next"][:TOKENS]:
        sheet.write(token if len(token) < 20 else f"{token[:18]}…", left, y, 130)
        width = max(1.0, share * (room - 200))
        colour = BARS[bool(heads)]
        sheet.parts.append(
            f'<rect x="{left + 140}" y="{y - 9}" width="{width:.1f}" height="10" fill="{colour}"/>'
        )
        y = sheet.write(f"{100 * share:.1f} %", left + 146 + width, y, 60, ink=QUIET)
    for note in column["notes"]:
        y = sheet.write(note, left, y, room, ink=QUIET)
    if "answer" in column:
        verdict = f" ({column['verdict']['label']})" if column.get("verdict") else ""
        y = sheet.write(f"Answer{verdict}: {column['answer'] or '(nothing)'}", left, y + 2, room)
    return y + LINE / 2

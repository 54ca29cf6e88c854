"""The figures of heads two by two: what each does without another, and the scores of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.figures.captions import (
    MEASURES,
    UNITS,
    ablation_words,
    head_words,
    model_words,
    prompt_words,
    rotation_words,
)
from safehead_tl.figures.named_grid import LETTER, named_grid
from safehead_tl.figures.shades import Shades
from safehead_tl.figures.style import COLOURS, FONT, SMALL, Pixels, lay_out
from safehead_tl.heads import Head
from safehead_tl.results import Scale

if TYPE_CHECKING:
    from safehead_tl.measures import Knockout

CELL = 64
MANY = 11
"""Of more heads, numbers are written small."""
ASIDE = 0.42
"""How far from a cell's middle arrows run, so that numbers stay free."""


def knockout_figure(found: Knockout, scale: Scale) -> go.Figure:
    """How a head's effect changes without another, and what of it is not so for heads apart.

    An arrow goes from each gate's place on the diagonal to its amplifier's.
    """
    names, count = [str(head) for head in found.heads], len(found.heads)
    change, beyond = found.change.tolist(), found.beyond.tolist()
    grid: list[list[float | None]] = [
        [None if a == b else (change if a < b else beyond)[a][b] for b in range(count)]
        for a in range(count)
    ]
    figure = named_grid(
        grid,
        [["" if value is None else f"{value:.2g}" for value in row] for row in grid],
        [[_hover(found, a, b) for b in range(count)] for a in range(count)],
        names,
        names,
        f"change, {found.unit}",
        Shades.of((each for row in grid for each in row if each is not None), scale, signed=True),
        size=_letters(found),
    )
    figure.add_scatter(
        x=list(range(count)),
        y=list(range(count)),
        text=[f"<b>{score:.2g}</b>" for score in found.alone.tolist()],
        textfont={"size": _letters(found)},
        mode="text",
        hovertext=[_hover(found, a, a) for a in range(count)],
        hoverinfo="text",
        showlegend=False,
    )
    place = {head: number for number, head in enumerate(found.heads)}
    for gate, amplifier in found.gates:
        _arrow(figure, place[gate], place[amplifier])
    least = "half of what it would be for heads that act apart"
    return _laid_out(
        figure,
        found,
        f"What heads do without one another: {MEASURES[found.measure]}",
        [
            "above the diagonal: how much more the later head does once the earlier is ablated",
            "below: what of that is not so for heads that act apart; on it: each head alone",
            f"arrow: from a gate to a later head of whose effect it leaves at most {least}"
            if found.gates
            else f"no arrow: no earlier head leaves of a later one's effect at most {least}",
            *([f"backups: {_pair_words(found.backups)}"] * bool(found.backups)),
        ],
    )


def pairs_figure(found: Knockout, scale: Scale) -> go.Figure:
    """The scores of pairs, and of single heads on the diagonal."""
    names, grid = [str(head) for head in found.heads], found.together.tolist()
    figure = named_grid(
        grid,
        [[f"{value:.2g}" for value in row] for row in grid],
        [[_hover(found, a, b) for b in range(len(names))] for a in range(len(names))],
        names,
        names,
        UNITS[found.measure],
        Shades.of((each for row in grid for each in row), scale, signed=found.signed),
        size=_letters(found),
    )
    (first, second), score = found.pairs()[0]
    return _laid_out(
        figure,
        found,
        f"{MEASURES[found.measure]} of pairs of heads",
        [
            "on the diagonal: heads by themselves",
            f"the highest pair: {first} and {second}, {score:.3g} {found.unit}",
        ],
    )


def _laid_out(figure: go.Figure, found: Knockout, title: str, notes: list[str]) -> go.Figure:
    provenance, side = found.provenance, max(300, CELL * len(found.heads))
    where = [f"{model_words(provenance)}, {prompt_words(provenance)}"]
    if found.measure == "generalized_ships":
        where.append(rotation_words(provenance))
    longest = max(len(str(head)) for head in found.heads) * LETTER
    figure.update_layout(xaxis_title="head", yaxis_title="ablated with it, or before it")
    return lay_out(
        figure,
        f"{title} under {ablation_words(provenance)}",
        [*where, *notes],
        plot=(side, 0.75 * side),
        margin={"l": 60 + longest, "r": 110},
    )


def _letters(found: Knockout) -> Pixels:
    """The size of the letters in cells."""
    return FONT if len(found.heads) <= MANY else SMALL


def _arrow(figure: go.Figure, gate: int, amplifier: int) -> None:
    """Along the gate's row to the amplifier's column, and down to the diagonal."""
    line = {"color": COLOURS["ink"], "width": 2}
    turn = (amplifier - ASIDE, gate + ASIDE)
    figure.add_shape(type="line", x0=gate + ASIDE, y0=turn[1], x1=turn[0], y1=turn[1], line=line)
    figure.add_annotation(
        x=turn[0],
        y=amplifier - 0.2,
        ax=turn[0],
        ay=turn[1],
        xref="x",
        yref="y",
        axref="x",
        ayref="y",
        text="",
        showarrow=True,
        arrowhead=2,
        arrowwidth=2,
        arrowcolor=COLOURS["ink"],
    )


def _hover(found: Knockout, a: int, b: int) -> str:
    first, second = sorted((a, b))
    unit, one, other = found.unit, found.heads[first], found.heads[second]
    if first == second:
        return f"<b>{one}</b><br>{found.alone[first]:.4g} {unit} alone"
    return "<br>".join(
        [
            f"<b>{one} and {other}</b>",
            f"together {found.together[first, second]:.4g} {unit}",
            f"{one} alone {found.alone[first]:.4g}, {other} alone {found.alone[second]:.4g}",
            f"{other} with {one} ablated: {found.given[first, second]:.4g}, "
            f"{found.change[first, second]:+.4g}",
            f"if they acted apart: together {found.apart[first, second]:.4g}",
        ]
    )


def _pair_words(pairs: tuple[tuple[Head, Head], ...], most: int = 3) -> str:
    named = "; ".join(head_words(pair) for pair in pairs[:most])
    return named if len(pairs) <= most else f"{named} and {len(pairs) - most} more"

"""The plane of refused harmful against refused harmless prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from safehead_tl.figures.captions import model_words, prompt_words
from safehead_tl.figures.style import COLOURS, SERIES, SYMBOLS, error_bars, lay_out, plain

if TYPE_CHECKING:
    from safehead_tl.evaluation.refusals import RefusalMap

SIDE = 420
AXIS = {"range": [-0.04, 1.04], "tickformat": ".0%", "zeroline": False, "dtick": 0.2}


def refusal_map_figure(found: RefusalMap) -> go.Figure:
    """A point for each variant, with 95 % intervals on both axes, and lines along factors."""
    figure = go.Figure()
    for names in _paths(found):
        pairs = [found.refused(name) for name in names]
        figure.add_scatter(
            x=[harmless.share for _, harmless in pairs],
            y=[harmful.share for harmful, _ in pairs],
            mode="lines",
            line={"color": COLOURS["quiet"], "width": 1.5},
            hoverinfo="skip",
            showlegend=False,
        )
    for number, name in enumerate(found.heads):
        harmful, harmless = found.refused(name)
        colour = COLOURS["unablated"] if number == 0 else SERIES[(number - 1) % len(SERIES)]
        thin = {"color": colour, "thickness": 1, "width": 3}
        figure.add_scatter(
            name=plain(name),
            x=[harmless.share],
            y=[harmful.share],
            error_x=error_bars([harmless.share], [harmless.interval]) | thin,
            error_y=error_bars([harmful.share], [harmful.interval]) | thin,
            mode="markers",
            marker={
                "color": colour,
                "size": 11 if number else 17,  # so that it is seen behind another
                "symbol": SYMBOLS[((number - 1) // len(SERIES) + 1) % len(SYMBOLS)],
            },
            hovertext=f"{plain(name)}<br>harmful refused {harmful}<br>harmless refused {harmless}",
            hoverinfo="text",
        )
    figure.update_layout(
        xaxis={"title": {"text": "harmless prompts refused"}, **AXIS},
        yaxis={"title": {"text": "harmful prompts refused"}, **AXIS},
    )
    others = len(found.harmless["unablated"].prompts)
    return lay_out(
        figure,
        "What is refused: harmful prompts against harmless ones",
        [
            f"{model_words(found.provenance)}, {prompt_words(found.provenance, 'harmful')}",
            f"{others} harmless prompts",
            "95 % Wilson intervals",
            "the upper left is best",
            *(["lines join factors of the same heads"] if _paths(found) else []),
        ],
        plot=(SIDE + 120, SIDE),
        legend=-(-len(found.heads) // 3),
    )


def _paths(found: RefusalMap) -> list[list[str]]:
    """Variants that scale the same heads by several factors; the model as it is has 1."""
    scaled: dict[tuple[object, ...], list[tuple[float, str]]] = {}
    for name, heads in found.heads.items():
        told = found.ablations[name]
        if told.get("name") == "scaling":
            key = *sorted(heads), told["via"]
            scaled.setdefault(key, []).append((told["epsilon"], name))
    ways = [sorted([*some, (1.0, "unablated")]) for some in scaled.values() if len(some) > 1]
    return [[name for _, name in way] for way in ways]

"""The prompts' last states in a plane, before and after ablation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.figures.captions import (
    ablation_words,
    head_words,
    model_words,
    prompt_words,
    site_words,
)
from safehead_tl.figures.style import COLOURS, lay_out, plain

if TYPE_CHECKING:
    from safehead_tl.measures import LastStates

WIDTH, HEIGHT = 600, 360
SYMBOLS = (("circle-open", "circle"), ("square-open", "square"))
"""For each set of prompts: before and after ablation."""


@dataclass(frozen=True)
class Plane:
    """The two first principal components of some states.

    Attributes:
        mean: the states' mean.
        axes: the components, of length 1; the largest entry of each is positive.
        explained: the share of the states' variance along each.
    """

    mean: Float[Tensor, d_model]
    axes: Float[Tensor, "d_model 2"]
    explained: tuple[float, float]

    @classmethod
    def of(cls, states: Float[Tensor, "prompt d_model"]) -> Plane:
        """The plane in which states vary most.

        Raises:
            SafeheadError: if they lie on a line.
        """
        states = states.double()
        mean = states.mean(0)
        _, values, axes = torch.linalg.svd(states - mean, full_matrices=False)
        if len(values) < 3 or values[1] <= 1e-6 * values[0]:
            raise SafeheadError(
                f"{len(states)} prompts' states span no plane: give 3 or more different prompts"
            )
        first = axes[:2].T
        signs = first.gather(0, first.abs().argmax(0, keepdim=True)).sign()
        shares = (values**2 / (values**2).sum()).tolist()
        return cls(mean, first * signs, (shares[0], shares[1]))

    def __call__(self, states: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt 2"]:
        """Where states lie in the plane."""
        return (states.double() - self.mean) @ self.axes


def plane_figure(states: LastStates, other: LastStates | None, names: tuple[str, str]) -> go.Figure:
    """A line for each prompt, from its original state to its ablated one."""
    sets = [states] if other is None else [states, other]
    if other is not None:
        _check(states, other)
    plane = Plane.of(torch.cat([each.original for each in sets]))
    figure = go.Figure()
    for each in sets:
        _add_lines(figure, plane, each)
    for number, each in enumerate(sets):
        name = "" if other is None else f"{plain(names[number])}, "
        kinds = zip(
            ("unablated", "ablated"), (each.original, each.ablated), SYMBOLS[number], strict=True
        )
        for kind, found, symbol in kinds:
            figure.add_scatter(
                name=f"{name}{kind}",
                x=plane(found)[:, 0].tolist(),
                y=plane(found)[:, 1].tolist(),
                mode="markers",
                marker={
                    "symbol": symbol,
                    "color": COLOURS[kind],
                    "size": 8,
                    "opacity": 0.85,
                    "line": {"width": 1.5, "color": COLOURS[kind]},
                },
                hovertext=[f"{name}prompt {row}, {kind}" for row in range(len(found))],
                hoverinfo="text",
            )
    words = ("first", "second")
    titles = [
        f"{word} principal component ({share:.0%} of variance)".replace("%", " %")
        for word, share in zip(words, plane.explained, strict=True)
    ]
    figure.update_layout(
        xaxis={"title": {"text": titles[0]}, "zeroline": False},
        yaxis={"title": {"text": titles[1]}, "zeroline": False},
    )
    return lay_out(
        figure,
        f"Last states before and after {head_words(states.heads)}: "
        f"{ablation_words(states.provenance)}",
        _notes(sets, names, plane),
        plot=(WIDTH, HEIGHT),
        legend=1 if other is None else 2,
    )


def shown_share(plane: Plane, states: LastStates) -> float:
    """How much of the squared shift lies in the plane; 1 if nothing moved."""
    moved = (states.ablated.double() - states.original.double()).square().sum()
    seen = (plane(states.ablated) - plane(states.original)).square().sum()
    return float(seen / moved) if moved > 0 else 1.0


def _add_lines(figure: go.Figure, plane: Plane, states: LastStates) -> None:
    before, after = plane(states.original).tolist(), plane(states.ablated).tolist()
    pairs = list(zip(before, after, strict=True))
    figure.add_scatter(
        x=[place for start, end in pairs for place in (start[0], end[0], None)],
        y=[place for start, end in pairs for place in (start[1], end[1], None)],
        mode="lines",
        line={"color": COLOURS["quiet"], "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )


def _notes(sets: list[LastStates], names: tuple[str, str], plane: Plane) -> list[str]:
    provenance = sets[0].provenance
    shares = [f"{shown_share(plane, each):.0%}".replace("%", " %") for each in sets]
    if len(sets) == 1:
        prompts, seen = prompt_words(provenance), shares[0]
    else:
        labels = [plain(name) for name in names]
        prompts = ", ".join(
            f"{label}: {prompt_words(each.provenance)}"
            for label, each in zip(labels, sets, strict=True)
        )
        seen = ", ".join(f"{share} ({label})" for share, label in zip(shares, labels, strict=True))
    return [
        f"{model_words(provenance)}, {prompts}",
        f"components of the original states {site_words(provenance.settings['site'])}",
        f"{seen} of the squared shift lies in this plane",
    ]


def _check(states: LastStates, other: LastStates) -> None:
    one, two = states.provenance, other.provenance
    differing = [
        what
        for what, first, second in (
            ("model", one.model["weights_hash"], two.model["weights_hash"]),
            ("heads", set(states.heads), set(other.heads)),
            ("site", one.settings["site"], two.settings["site"]),
            ("ablation", dict(one.ablation), dict(two.ablation)),
        )
        if first != second
    ]
    if differing:
        raise SafeheadError(
            f"the two sets of states differ in {', '.join(differing)}: only prompts may differ"
        )

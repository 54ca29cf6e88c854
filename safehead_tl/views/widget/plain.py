"""The widget where anywidget is missing: lists, a slider and tables, of ipywidgets alone."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets

from safehead_tl.heads import Head
from safehead_tl.views.widget.plain_html import answer_html, heatmap_html
from safehead_tl.views.widget.state import Explorer

OWN = -1
"""Stands for the user's own prompt in the list of prompts."""


class PlainExplore(ipywidgets.VBox):  # type: ignore[misc]
    """The same as `ExploreWidget`, with heads chosen from a list."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer
        self._page, first = explorer.page(), explorer.first
        wide = ipywidgets.Layout(width="min(100%, 640px)")
        told: dict[str, Any] = {"style": {"description_width": "80px"}, "layout": wide}
        self.chosen = ipywidgets.SelectMultiple(
            description="Heads", options=_head_options(self._page), value=first["heads"],
            rows=8, **told,
        )  # fmt: skip
        self.ablation = ipywidgets.Dropdown(
            description="Ablation", value=first["ablation"], **told,
            options=[(choice.label, choice.key) for choice in explorer.choices],
        )  # fmt: skip
        self.epsilon = ipywidgets.FloatLogSlider(
            description="Epsilon", value=first["epsilon"], base=10, min=-5, max=0, step=0.05,
            continuous_update=False, readout_format=".2e", **told,
        )  # fmt: skip
        prompts = [
            (f"{number + 1}. {text}"[:120], number)
            for number, text in enumerate(self._page["prompts"])
        ]
        self.prompt = ipywidgets.Dropdown(
            description="Prompt", options=[*prompts, ("my own, below", OWN)], value=0, **told
        )
        self.own = ipywidgets.Text(
            description="My own", placeholder="a prompt, then Enter", continuous_update=False,
            **told,
        )  # fmt: skip
        self.button = ipywidgets.Button(description="Generate answers")
        self.status, self.map, self.views = (ipywidgets.HTML() for _ in range(3))
        if not self._page["generates"]:
            self.button.layout.display = "none"
        self.shown: dict[str, Any] = {}
        for control in (self.chosen, self.ablation, self.epsilon, self.prompt):
            control.observe(lambda _: self._ask(), "value")
        self.own.observe(lambda _: self._ask_own(), "value")
        self.button.on_click(lambda _: self._ask(generate=True))
        super().__init__(
            [self.map, self.chosen, self.ablation, self.epsilon, self.prompt, self.own,
             self.status, self.views, self.button]
        )  # fmt: skip
        self._ask()

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are ablated in what is shown."""
        return tuple(Head.parse(head) for head in self.shown.get("heads", ()))

    def _ask_own(self) -> None:
        if self.prompt.value == OWN:
            self._ask()
        else:
            self.prompt.value = OWN  # which asks

    def _ask(self, generate: bool = False) -> None:
        own = self.prompt.value == OWN
        asked = {
            "heads": list(self.chosen.value),
            "ablation": self.ablation.value,
            "epsilon": self.epsilon.value,
            "prompt": None if own else self.prompt.value,
            "text": self.own.value if own else "",
            "generate": generate,
        }
        scaled = {choice.key: choice.scaled for choice in self._explorer.choices}
        self.epsilon.disabled = not scaled[self.ablation.value]
        self.status.value = "<p role='status'>computing…</p>"
        self.shown = self._explorer.answer(asked)
        said = self.shown.get("error") or self.shown["status"]
        self.map.value = heatmap_html(self._page, asked["heads"])
        self.status.value = f"<p role='status'>{html.escape(said)}</p>"
        self.views.value = answer_html(self.shown)


def _head_options(page: dict[str, Any]) -> list[tuple[str, str]]:
    """All heads by rank, those that were not scored last."""
    heads = page["shape"]["heads"]
    rest = [index for index, score in enumerate(page["scores"]) if score is None]
    names = {index: f"L{index // heads}H{index % heads}" for index in (*page["ranked"], *rest)}
    unit = page["unit"]
    return [
        (name if index in rest else f"{name}: {page['scores'][index]:.3g} {unit}", name)
        for index, name in names.items()
    ]

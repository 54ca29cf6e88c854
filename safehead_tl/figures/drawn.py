"""A figure as people get it: it offers no upload, and its page is one small offline file.

Plotly's own page has no title and no language, does not fit a phone, and holds 4.8 MB of script
for kinds of plots that are not drawn here. This one holds plotly's script for plots with two axes,
compressed, and a policy that lets in nothing but that script and its own.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from typing_extensions import override

from safehead_tl.figures.web import FOLDER, filled, policy_hash, web_text
from safehead_tl.writing import write_page

QUIET: Mapping[str, bool] = MappingProxyType({"displaylogo": False, "showSendToCloud": False})
"""What plotly's menu leaves out: a link to its makers, and the button that uploads the figure."""

UPLOADS = ("sendChartToCloud", "sendDataToCloud", "editInChartStudio")
"""That button by its names in plotly's versions, for whatever else draws the figure."""

BUNDLE = "plotly-cartesian.min.js.gz"


class Figure(go.Figure):  # type: ignore[misc]
    """A plotly figure whose menu has no upload and no logo, with a page of its own.

    In all else it is plotly's. `write_html` and `to_html` give one offline page of 0.6 MB; with
    any option but `config`, what plotly gives.
    """

    @override
    def show(self, *args: Any, **told: Any) -> None:
        super().show(*args, **_quiet(told))

    @override
    def to_html(self, config: Mapping[str, Any] | None = None, **told: Any) -> str:
        options = _quiet({**told, "config": config})
        return str(super().to_html(**options)) if told else _page(self, options["config"])

    @override
    def write_html(
        self, file: str | Path | io.TextIOBase, config: Mapping[str, Any] | None = None, **told: Any
    ) -> None:
        if told:
            super().write_html(file, **_quiet({**told, "config": config}))
        elif isinstance(file, str | Path):
            write_page(file, self.to_html(config), overwrite=True)
        else:
            file.write(self.to_html(config))

    @override
    def _repr_mimebundle_(self, *args: Any, **told: Any) -> Any:
        return super()._repr_mimebundle_(*args, **_quiet(told))

    @override
    def _ipython_display_(self) -> None:
        if pio.renderers.render_on_display and pio.renderers.default:
            self.show()
        else:
            super()._ipython_display_()


def _quiet(told: dict[str, Any]) -> dict[str, Any]:
    """Options with what the menu leaves out, unless they say otherwise."""
    return {**told, "config": {**QUIET, **(told.get("config") or {})}}


def _page(figure: Figure, config: Mapping[str, Any]) -> str:
    """The page; the figure's header is text on it, which wraps."""
    title, *notes = _header(figure)
    drawn = go.Figure(figure)
    above = drawn.layout.meta["header"]
    drawn.layout.title = None
    drawn.update_layout(
        height=drawn.layout.height - above,
        margin={"t": drawn.layout.margin.t - above},
    )
    packed = (FOLDER / BUNDLE).read_bytes()
    script, style = web_text("figure.js"), web_text("figure.css")
    told = f'{{"figure":{drawn.to_json()},"config":{json.dumps(dict(config))}}}'
    parts = {
        "title": html.escape(title),
        "notes": html.escape(" ".join(notes)),
        "licence": web_text("plotly-LICENSE"),
        "style": style,
        "script": script,
        "script_hash": policy_hash(script),
        "plotly_hash": policy_hash(gzip.decompress(packed).decode()),
        "plotly": base64.b64encode(packed).decode(),
        "data": base64.b64encode(gzip.compress(told.encode(), mtime=0)).decode(),
    }
    return filled("figure.html", parts)


def _header(figure: Figure) -> list[str]:
    """The figure's title and notes, each as plain text."""
    lines = re.sub("<br>", " ", figure.layout.title.text or "Figure").split("</span>")
    texts = (html.unescape(re.sub("<[^>]*>", "", line)).strip() for line in lines)
    return [text for text in texts if text]

"""The widget in the browser: anywidget carries requests and answers, our own script draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import anywidget
import traitlets
from IPython.display import display, update_display

from safehead_tl.figures import web_text
from safehead_tl.heads import Head, read_heads
from safehead_tl.views.page.report import SCRIPTS, STYLES
from safehead_tl.views.widget.saving import save_state
from safehead_tl.views.widget.state import Explorer
from safehead_tl.views.widget.still import still


class ExploreWidget(anywidget.AnyWidget):
    """A heatmap to choose heads in, and what ablating them does; a notebook draws it.

    The browser writes what it wants into `asked`, under a number that grows, and the answer comes
    back in `shown` under the same number.
    """

    _esm = web_text(*SCRIPTS, "explore.js")
    _css = web_text(*STYLES, "explore.css")

    page = traitlets.Dict().tag(sync=True)
    asked = traitlets.Any().tag(sync=True)  # whatever comes: it is checked where it can be told
    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer
        self._still_id: str | None = None
        shown = {"number": 0, **explorer.answer(explorer.first)}
        super().__init__(page=explorer.page(), asked={"number": 0, **explorer.first}, shown=shown)
        self.observe(self._answer, "asked")

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are ablated in what is shown, in whichever column."""
        columns = self.shown.get("columns", ())
        return read_heads([head for column in columns for head in column["heads"]])

    def save(self, out: str | Path, *, title: str | None = None, overwrite: bool = False) -> Path:
        """As `Exploration.save`."""
        return save_state(self._explorer, self.shown, out, title, overwrite)

    def __repr__(self) -> str:
        return (
            "sh.explore: a live widget, which is shown while a kernel runs. "
            f"{self.shown.get('status', self.shown.get('error'))}"
        )

    def _ipython_display_(self) -> None:
        """The widget, and under it a picture of what it shows, which stays when no kernel runs."""
        found = self._repr_mimebundle_()
        bundle, metadata = found if isinstance(found, tuple) else (found, {})
        display(bundle, metadata=metadata, raw=True)
        self._still_id = self._still_id or uuid4().hex
        display(self._still(), raw=True, display_id=self._still_id)

    def _still(self) -> dict[str, str]:
        return {"image/svg+xml": still(self.page, self.shown), "text/plain": repr(self)}

    def _answer(self, change: Any) -> None:
        asked, latest = change["new"], self.shown["number"]
        number = asked.get("number") if isinstance(asked, dict) else None
        if not isinstance(number, int):
            number = latest  # not from our script, which is still told what is wrong with it
        elif number <= latest:
            return  # older than what is shown
        self.shown = {"number": number, **self._explorer.answer(asked)}
        if self._still_id is not None:
            update_display(self._still(), raw=True, display_id=self._still_id)

"""A live look at heads in a notebook: choose some, and see what ablating them does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.heads import Head, HeadsLike, parse_heads, read_heads
from safehead_tl.judges import Judge, resolve_judge
from safehead_tl.models import Model, check_model, said_once, single_thread_if_tiny
from safehead_tl.prompts import Prompts, Template, encode, prompt_texts
from safehead_tl.results import HeadScores
from safehead_tl.scan import Run, check_run
from safehead_tl.views.inspection import answering
from safehead_tl.views.page.report import checked_scores
from safehead_tl.views.widget.saving import save_state
from safehead_tl.views.widget.state import Explorer, beginning
from safehead_tl.views.widget.still import still

NO_NOTEBOOK = (
    "The live view needs a notebook: Jupyter, VS Code or Colab. Without one, the command `safehead "
    "explore` serves it to a browser. For a page to open anywhere, use its save, or report."
)


@runtime_checkable
class Exploration(Protocol):
    """What `explore` returns: something that a notebook shows as a cell's value."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are ablated in what is shown, for whatever is to be done with them."""
        ...

    def save(self, out: str | Path, *, title: str | None = None, overwrite: bool = False) -> Path:
        """Writes what is shown as a page like `report`'s, and returns its path.

        The page has the prompts of what is shown, whole patterns of the heads that are shown or
        ablated, and answers if they were generated; it opens with the same columns. Heads that are
        ablated together are its group: of several such columns the last.

        Args:
            out: the page to write, `*.html`.
            title: by default the model's name.
            overwrite: replace what is there even if this toolkit did not write it.

        Raises:
            SafeheadError: while a mistake is shown, or if the file may not be written.
        """
        ...


@dataclass(frozen=True)
class StillExplore:
    """A picture, where there is no notebook to be live in: what a live view would answer first."""

    explorer: Explorer
    shown: Mapping[str, Any]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are ablated in the picture."""
        return read_heads(self.explorer.first["shown"])

    def save(self, out: str | Path, *, title: str | None = None, overwrite: bool = False) -> Path:
        """As `Exploration.save`."""
        return save_state(self.explorer, self.shown, out, title, overwrite)

    def __repr__(self) -> str:
        return NO_NOTEBOOK

    def _repr_html_(self) -> str:
        return f"<p>{NO_NOTEBOOK}</p>{still(self.explorer.page(), self.shown)}"


@said_once()
def explore(
    model: Model,
    prompts: Prompts,
    *,
    scores: HeadScores | None = None,
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    marked: HeadsLike = (),
    marked_as: str = "marked",
    judge: str | Judge | None = "keyword",
    max_new_tokens: int | None = None,
    run: Run = Run(),
) -> Exploration:
    """Shows all heads in a notebook, live: what is chosen there is ablated, and what then happens.

    A click on a head in the heatmap ablates it; with the shift key held it is added or removed.
    Up to three columns are shown side by side, each with heads, ablation, epsilon and prompt of its
    own: attention, the next token's probabilities, their KL from the unablated ones, and on demand
    the greedy answers. What prompts and answers say cannot run in the notebook.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`, without template.
        scores: scores of the heads on these prompts; by default Ships, computed here.
        template: as in `ships`.
        ablation: what is done to a head in the scores, and at first in what is shown.
        marked: heads to mark in the heatmap, such as planted ones.
        marked_as: what they are.
        judge: says of each answer whether it complies; `None`: nobody.
        max_new_tokens: length of the answers; 0: none; by default 48, or as many as fit.
        run: how the scan runs, if there is one, and progress bars.

    Returns:
        A widget; make it a cell's value. Outside a notebook it is a picture and a sentence.
        Costs a scan (unless `scores` are given) and a pass of each of the first eight prompts; then
        one or two for each change, and one for each token of answers.

    Raises:
        SafeheadError: for prompts, template, ablation or heads that cannot be used, or scores of
            another model or other prompts. Later mistakes, in the notebook, are told there.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> view = sh.explore(model, prompts, max_new_tokens=8)
        >>> view.heads
        (Head(layer=1, head=3),)
    """
    check_model(model)
    check_run(run, keeping_nothing=None if scores is None else "explore with scores=")
    prompts = prompt_texts(prompts)
    if max_new_tokens != 0:
        answering(model, encode(model, prompts, template), max_new_tokens, run)
    crosses = parse_heads(marked, model.cfg.n_layers, model.cfg.n_heads)
    with single_thread_if_tiny(model):
        scores = checked_scores(scores, model, prompts, template, ablation, run)
        choices, first = beginning(scores, resolve_ablation(ablation))
        explorer = Explorer(
            model, scores, encode(model, prompts, template), choices, first, crosses, marked_as,
            max_new_tokens, None if judge is None else resolve_judge(judge),
        )  # fmt: skip
    return _front(explorer)


def _front(explorer: Explorer) -> Exploration:
    """What can be shown here: the widget in a notebook, elsewhere a picture."""
    if _in_notebook():
        from safehead_tl.views.widget.browser import ExploreWidget  # loads IPython and ipywidgets

        _let_colab_show_widgets()
        return ExploreWidget(explorer)
    return StillExplore(explorer, explorer.answer(explorer.first))


def _in_notebook() -> bool:
    """Whether a kernel runs this: IPython in a terminal has none, and can show no widget."""
    ipython = sys.modules.get("IPython")  # where a notebook runs, it has been imported
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _let_colab_show_widgets() -> None:
    """Colab shows widgets that are not its own only when it is asked to."""
    try:
        from google.colab import output
    except ImportError:
        return
    output.enable_custom_widget_manager()

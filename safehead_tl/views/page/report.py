"""The report: one offline page on which every head of a model can be looked at."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation import Evaluation
from safehead_tl.figures import filled, in_script, web_page
from safehead_tl.heads import HeadsLike, parse_heads
from safehead_tl.judges import Judge, resolve_judge
from safehead_tl.measures import Knockout, ships
from safehead_tl.models import Model, check_model, said_once, single_thread_if_tiny
from safehead_tl.prompts import Prompts, Template, encode, prompt_texts
from safehead_tl.results import HeadGroup, HeadScores
from safehead_tl.scan import Run, check_run
from safehead_tl.views.choices import choices_with
from safehead_tl.views.inspection import Views, answering
from safehead_tl.views.page.data import Shown, page_data
from safehead_tl.views.page.words import evaluation_section, how, lead, sahara_section, summary
from safehead_tl.writing import check_file, write_page

SCRIPTS = ("draw.js", "map.js", "attention.js", "panel.js")
STYLES = ("draw.css", "attention.css")
"""What page and widget draw with, in this order, before what is their own."""


@said_once()
def report(
    model: Model,
    prompts: Prompts,
    out: str | Path,
    *,
    scores: HeadScores | None = None,
    against: HeadScores | None = None,
    also: Sequence[HeadScores] = (),
    beside: Sequence[str | Ablation] = (),
    group: HeadGroup | None = None,
    evaluation: Evaluation | None = None,
    knockout: Knockout | None = None,
    judge: str | Judge | None = "keyword",
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    top: int = 24,
    shown: int = 8,
    max_new_tokens: int | None = None,
    marked: HeadsLike = (),
    marked_as: str = "marked",
    title: str | None = None,
    overwrite: bool = False,
    run: Run = Run(),
) -> Path:
    """Writes one self-contained HTML page, which opens without a network.

    A heatmap of all heads; a click or an arrow key shows a head's rank and scores, its attention
    on a prompt with and without ablation, the next token's probabilities before and after, and the
    answers. The page loads nothing and sends nothing, and prompts and answers cannot run in it.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`, without template. The page holds those that it shows.
        out: the page to write, `*.html`.
        scores: scores of the heads on these prompts; by default Ships, computed here.
        against: the same scores in other prompts, such as harmless ones, to tell which heads score
            higher here than chance would have it (`HeadScores.significant`).
        also: other scores of the model's heads, as maps to switch to: by another measure or in
            other prompts, or `asr_map(...).scores()`.
        beside: other ablations to show beside `ablation`, with answers of their own.
        group: a group that Sahara found, to tell of, to show on the map, and to ablate together.
        evaluation: an evaluation, to tell of.
        knockout: heads two by two, for arrows on the map from gates to what they gate.
        judge: says of each answer whether it complies; `None`: nobody.
        template: as in `ships`.
        ablation: what is done to a head.
        top: how many of the highest heads get whole patterns, next tokens and answers, as marked
            ones and those of `group` do; the others show what they attend to from the last token.
        shown: how many prompts the page shows, the first ones.
        max_new_tokens: length of the answers; 0: none; by default 48, or as many as fit.
        marked: heads to mark in the heatmap, such as planted ones.
        marked_as: what they are.
        title: by default the model's name.
        overwrite: replace what is there even if this toolkit did not write it.
        run: how the scan runs, if there is one, and progress bars.

    Returns:
        The path. Costs a scan (unless `scores` are given); for each shown prompt one pass, parts of
        two more for the heads shown whole, and one with `group` ablated; and for each such head and
        each ablation a pass from its layer on, and a generation.

    Raises:
        SafeheadError: for prompts, template, ablation or heads that cannot be used, scores of
            another model or other prompts, or a path that is no `.html` file or may not be written.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> path = sh.report(
        ...     model, prompts, "report.html", top=2, shown=2, max_new_tokens=8
        ... )
        >>> path.name
        'report.html'
    """
    check_model(model)
    check_run(run, keeping_nothing=None if scores is None else "report with scores=")
    prompts = prompt_texts(prompts)
    path = Path(out)
    check_file(path, ".html", overwrite=overwrite)
    for name, value, least in (("top", top, 0), ("shown", shown, 1)):
        if not (isinstance(value, int) and value >= least):
            raise SafeheadError(f"{name}={value!r}: give a number from {least}")
    for name, several in (("also", also), ("beside", beside)):
        if isinstance(several, HeadScores | str | Ablation):
            raise SafeheadError(f"{name}={several!r} is one: give a list, such as [it]")
    for name, given, kind in (
        ("scores", scores, HeadScores),
        ("against", against, HeadScores),
        *((f"also[{number}]", each, HeadScores) for number, each in enumerate(also)),
        ("group", group, HeadGroup),
        ("evaluation", evaluation, Evaluation),
        ("knockout", knockout, Knockout),
    ):
        if not (given is None or isinstance(given, kind)):
            raise SafeheadError(f"{name} is a {type(given).__name__}: give a {kind.__name__}")
    for each in also:
        check_shape(model, each)
    size = model.cfg.n_layers, model.cfg.n_heads
    crosses = parse_heads(marked, *size)
    members = () if group is None else parse_heads(group.heads, *size)
    if knockout is not None:
        parse_heads(knockout.heads, *size)
    judging = None if judge is None else resolve_judge(judge)
    labels = _labels([ablation, *beside])
    if max_new_tokens != 0:
        answering(model, encode(model, prompts[:shown], template), max_new_tokens, run)
    with single_thread_if_tiny(model):
        scores = checked_scores(scores, model, prompts, template, ablation, run)
        found = None if against is None else scores.significant(against)
        views = [Views.of(model, prompts, template, each, shown) for each in (ablation, *beside)]
        chosen = [*(head for head, _ in scores.top(top)), *crosses, *members]
        seen = Shown(
            dict(zip(labels, views, strict=True)), labels, [scores, *also],
            list(dict.fromkeys(chosen)), group, members, "Sahara",
            range(len(views[0].batch.prompts)), judging, max_new_tokens, run,
        )  # fmt: skip
        data = page_data(seen, crosses, marked_as, knockout)
    lines = summary(scores, found, group, evaluation)
    sections = [sahara_section(group), evaluation_section(evaluation)]
    write_shown(path, data, scores, title, lines, sections, overwrite=overwrite)
    return path


def write_shown(
    path: Path,
    data: Mapping[str, Any],
    scores: HeadScores,
    title: str | None,
    lines: Sequence[str],
    sections: Sequence[str] = (),
    *,
    overwrite: bool,
) -> None:
    """Writes the page: what its script draws, sentences, and sections as HTML."""
    model_name = str(scores.provenance.model["name"])
    page = _page(
        {
            "title": html.escape(title or f"Attention heads of {Path(model_name).name}"),
            "lead": html.escape(lead(scores)),
            "summary": "".join(f"<li>{html.escape(line)}</li>" for line in lines),
            "extra": "".join(filter(None, sections)),
            "how": html.escape(how(scores)),
            "settings": html.escape(json.dumps(scores.provenance.to_dict(), indent=1, default=str)),
        },
        {**data, "lead": lead(scores)},
    )
    write_page(path, page, overwrite=overwrite)


def _labels(ablations: Sequence[str | Ablation]) -> dict[str, str]:
    """What ablations do, in words, by a key for each."""
    found: dict[str, str] = {}
    for each in ablations:
        _, choice, epsilon = choices_with(resolve_ablation(each))
        words = choice.words(epsilon)
        if words in found.values():
            raise SafeheadError(f"beside has {words}, which is shown already: give another")
        found[f"{choice.key}-{len(found)}" if choice.key in found else choice.key] = words
    return found


def check_shape(model: Model, scores: HeadScores) -> None:
    """Scores must be of a model with as many heads."""
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    if tuple(scores.values.shape) != shape:
        raise SafeheadError(
            f"the scores are of {tuple(scores.values.shape)} layers and heads, the model has "
            f"{shape}: give scores of this model"
        )


def checked_scores(
    scores: HeadScores | None,
    model: Model,
    prompts: Prompts,
    template: Template,
    ablation: str | Ablation,
    run: Run,
) -> HeadScores:
    """Scores of what the page shows: those that were given, or Ships."""
    if scores is None:
        return ships(model, prompts, template=template, ablation=ablation, run=run)
    check_shape(model, scores)
    said, ours = scores.provenance.prompts, encode(model, prompts, template).describe()
    if said["tokens_hash"] != ours["tokens_hash"]:
        raise SafeheadError(
            "the scores are of other prompts or another template: give those they were computed "
            "with, or leave scores out"
        )
    theirs, mine = scores.provenance.ablation["name"], resolve_ablation(ablation).name
    if theirs != mine:
        raise SafeheadError(f"the scores are of {theirs} ablation: say ablation={theirs!r}")
    return scores


def _page(parts: dict[str, str], data: dict[str, Any]) -> str:
    """The page, with a content policy that lets nothing in but its own script and style."""
    told = web_page((*STYLES, "report.css"), (*SCRIPTS, "report.js"))
    drawn = in_script(json.dumps(data, separators=(",", ":"), allow_nan=False))
    return filled("report.html", {**parts, **told, "data": drawn})

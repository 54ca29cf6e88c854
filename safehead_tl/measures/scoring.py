"""Ships: how far the model's answer moves when one head is ablated.

Per query it is a divergence of next-token distributions (paper Eq. 9); for a data set a rotation
of the space that the prompts' last states span (Eq. 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safehead_tl.ablations import Ablation
from safehead_tl.heads import HeadsLike, parse_heads
from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.rotation import Rotation, rotation_settings
from safehead_tl.models import Model, Site
from safehead_tl.prompts import Template
from safehead_tl.results import HeadScores
from safehead_tl.scan import Running, Screen, Search, resolve_screen, score, screening_settings

TOP = 10
"""How many of the highest heads screening has to get right, unless it is told."""


def ships(
    model: Model,
    prompts: Sequence[str],
    *,
    template: Template = "paper",
    ablation: str | Ablation = "undifferentiated",
    heads: HeadsLike | None = None,
    group: HeadsLike = (),
    screen: Screen = "off",
    max_rows: int | None = None,
    max_bytes: int | str | None = None,
    shared_prefix: bool = True,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> HeadScores:
    """Scores heads by how far ablating each moves the next-token distribution (paper Eq. 9).

    Ships is KL(original ‖ ablated) at the last prompt token over the full vocabulary, in nats. It
    has no sign: it says that the answer moves, not where to.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: the queries.
        template: `"direct"`, `"paper"`, `"chat"`, a `ChatTemplate` or a text with `{query}`.
        ablation: an ablation or its name.
        heads: the heads to score; by default all.
        group: heads that are ablated together with each scored one.
        screen: `"off"`: every head is scored exactly. `"auto"`: all are screened to first order,
            and a short list is scored exactly, which grows until the top 10 are safe. A number: so
            many heads exactly. Or a `Screening`.
        max_rows: most (head, prompt) pairs in one pass; by default as many as are fast and fit.
        max_bytes: memory to use beyond the model's weights, such as `"2GiB"`; by default four
            fifths of what is free on a GPU, elsewhere at most 1 GiB.
        shared_prefix: run tokens that all prompts begin with once for each head, where that
            saves work.
        run_dir: a directory that keeps finished pieces. Started again with the same arguments, a
            run that was stopped or killed goes on there.
        progress: show progress bars.

    Returns:
        Scores in nats, `values` averaged over prompts and `per_prompt`. Each head and prompt
        costs less than half of the model's layers on average (docs/benchmarks.md); on a
        `TransformerBridge`, or if the ablation is not separable, (n_layers + 1) / 2 of them.

    Raises:
        SafeheadError: for prompts, template, ablation, heads or memory that cannot be used, a
            `run_dir` that holds another run or cannot be written, or a score that comes out as no
            finite number.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> scores = sh.ships(model, prompts, template="chat")
        >>> [str(head) for head, _ in scores.top(2)]
        ['L1H3', 'L2H6']
        >>> round(scores["L1H3"], 2)  # nats
        1.05
    """
    running = Running(max_rows, max_bytes, shared_prefix, run_dir, progress)
    search = Search.start(model, prompts, template, ablation, running)
    chosen = parse_heads(group, *search.shape)
    candidates = search.candidates(heads, chosen)
    screening = resolve_screen(screen)
    settings = {"group": [str(head) for head in chosen], **screening_settings(screening)}
    search.open_directory("ships", settings, candidates)
    measure = Divergence(model, search.original, search.passes, search.plan.budget)
    per_prompt, screened = score(search, measure, candidates, chosen, "ships", screening, TOP)
    return HeadScores(
        measure="ships",
        unit="nats",
        values=per_prompt.mean(0),
        per_prompt=per_prompt,
        group=chosen,
        provenance=search.provenance(settings),
        screening=screened,
    )


def generalized_ships(
    model: Model,
    prompts: Sequence[str],
    *,
    rank: int = 1,
    centre: bool = False,
    site: Site = "final_norm",
    template: Template = "paper",
    ablation: str | Ablation = "undifferentiated",
    heads: HeadsLike | None = None,
    group: HeadsLike = (),
    screen: Screen = "off",
    max_rows: int | None = None,
    max_bytes: int | str | None = None,
    shared_prefix: bool = True,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> HeadScores:
    """Scores heads by how far ablating each turns the prompts' states as a set (paper Eq. 11).

    The last tokens' states of all prompts are stacked; the score is the sum of the principal
    angles, in radians, between the first `rank` left singular vectors of the original stack and
    of the ablated one. The defaults are what the paper's code does, with exact small angles.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: the queries; more than `rank`.
        rank: how many singular vectors. Uncentred, the first one is nearly the constant vector.
        centre: subtract the mean state first.
        site: `"final_norm"` (after the final norm with its weight) or `"resid_post"` (before it).
        template: `"direct"`, `"paper"`, `"chat"`, a `ChatTemplate` or a text with `{query}`.
        ablation: an ablation or its name.
        heads: the heads to score; by default all.
        group: heads that are ablated together with each scored one.
        screen: as in `ships`.
        max_rows: as in `ships`, and so the following.
        max_bytes: memory to use beyond the model's weights.
        shared_prefix: run tokens that all prompts begin with once for each head.
        run_dir: a directory that keeps finished pieces.
        progress: show progress bars.

    Returns:
        Scores in radians, from 0 to `rank` times pi/2. Costs as much as `ships`.

    Raises:
        SafeheadError: as `ships`; or if `rank` is too large for the number of prompts, or `site`
            cannot be read.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> scores = sh.generalized_ships(model, prompts, template="chat", heads=["L1H3", "L2H6"])
        >>> [(str(head), round(score, 2)) for head, score in scores.ranked()]  # radians
        [('L1H3', 0.15), ('L2H6', 0.08)]
    """
    running = Running(max_rows, max_bytes, shared_prefix, run_dir, progress)
    search = Search.start(model, prompts, template, ablation, running)
    chosen = parse_heads(group, *search.shape)
    candidates = search.candidates(heads, chosen)
    told = rotation_settings(search, rank, centre, site)
    screening = resolve_screen(screen)
    settings = {**told, "group": [str(head) for head in chosen], **screening_settings(screening)}
    search.open_directory("generalized_ships", settings, candidates)
    measure = Rotation.of(search, rank, centre, site)
    label = "generalized ships"
    scores, screened = score(search, measure, candidates, chosen, label, screening, TOP)
    return HeadScores(
        measure="generalized_ships",
        unit="radians",
        values=scores[0],
        per_prompt=None,
        group=chosen,
        provenance=search.provenance(settings),
        screening=screened,
    )

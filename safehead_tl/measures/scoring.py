"""Ships: how far the model's answer moves when one head is ablated.

Per query it is a divergence of next-token distributions (paper Eq. 9); for a data set a rotation
of the space that the prompts' last states span (Eq. 11). Refusal log-odds have a sign.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from safehead_tl.ablations import Ablation
from safehead_tl.heads import HeadsLike, parse_heads
from safehead_tl.measures.angles import Reading
from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.odds import LogOdds
from safehead_tl.measures.openings import Openings
from safehead_tl.measures.rotation import Rotation, rotation_settings
from safehead_tl.models import Model, Site
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import HeadScores
from safehead_tl.scan import (
    Run,
    Screen,
    Screening,
    Search,
    anywhere,
    resolve_screen,
    score,
    screening_settings,
)

TOP = 10
"""How many of the highest heads screening has to get right, unless it is told."""


@anywhere
def ships(
    model: Model,
    prompts: Prompts,
    *,
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    answer: str | None = None,
    candidates: HeadsLike | None = None,
    given: HeadsLike = (),
    screen: Screen = "off",
    run: Run = Run(),
) -> HeadScores:
    """Scores heads by how far ablating each moves the next-token distribution (paper Eq. 9).

    Ships is KL(original ‖ ablated) at the last prompt token over the full vocabulary, in nats. It
    has no sign: it says that the answer moves, not where to.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: the queries: texts, or a source that `load_prompts` reads.
        template: the text around each: `"auto"` (the model's own chat template; `"paper"` if it
            has none), `"chat"`, `"paper"`, `"direct"`, a `ChatTemplate`, a text with `{query}`, or
            one of them `Prefilled`.
        ablation: an ablation or its name.
        answer: a given answer, such as a refusal, for Eq. 5: the divergence is taken at each of
            its tokens' places, behind the tokens before it, and averaged. Of one token it is that
            at the last prompt token. Costs about as many scans as it has tokens.
        candidates: the heads to score; by default all.
        given: heads that are ablated together with each candidate.
        screen: `"off"`: every head is scored exactly. `"auto"`: all are screened to first order,
            those that may be in the top 10 are scored exactly, and the others are ablated together
            in blocks, to find what screening does not see; `screening.sentence()` says what is
            known then. A number: so many heads exactly, no blocks. Or a `Screening`.
        run: how it runs: memory, a directory to go on in, progress bars.

    Returns:
        Scores in nats, `values` averaged over prompts and `per_prompt`. Each head and prompt
        costs less than half of the model's layers on average (docs/benchmarks.md); on a
        `TransformerBridge`, or if the ablation is not separable, (n_layers + 1) / 2 of them.

    Raises:
        SafeheadError: for prompts, template, ablation, heads or memory that cannot be used, a
            run directory that holds another run or cannot be written, or a score that comes out
            as no finite number.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> scores = sh.ships(model, prompts)
        >>> [str(head) for head, _ in scores.top(2)]
        ['L1H3', 'L2H6']
        >>> round(scores["L1H3"], 2)  # nats
        1.05
    """
    screening = resolve_screen(screen)
    beside = partial(Divergence.beside, screening)
    search = Search.start(model, prompts, template, ablation, run, beside, answer)
    told = {} if answer is None else {"answer": answer, "answer_tokens": search.batch.places}

    def measure() -> Divergence:
        return Divergence(model, search.original, search.passes, search.plan.budget)

    return _scan(search, measure, told, candidates, given, screening, "ships")


@anywhere
def refusal_log_odds(
    model: Model,
    prompts: Prompts,
    openings: Openings,
    *,
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    candidates: HeadsLike | None = None,
    given: HeadsLike = (),
    screen: Screen = "off",
    run: Run = Run(),
) -> HeadScores:
    """Scores heads by how far ablating each lowers the log-odds of a refusal.

    The log-odds are log P(refusal openings) - log P(compliance openings) at the last prompt token.
    A score is how far they *fall*: above 0, the head carries refusal, and without it help is
    likelier; below 0, it works against refusal. Ships has no such sign. What the answer moves to
    outside both sets of openings, such as gibberish, is not seen: Ships sees that.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`.
        openings: the first tokens of refusals and of compliant answers.
        template: as in `ships`, and so the following.
        ablation: an ablation or its name.
        candidates: the heads to score.
        given: heads that are ablated together with each candidate.
        screen: which heads are scored exactly; the highest are looked for, not the lowest.
        run: how it runs.

    Returns:
        Scores in nats, with a sign, `values` averaged over prompts and `per_prompt`. Costs as much
        as `ships`, less the unembedding.

    Raises:
        SafeheadError: as `ships`; or for openings that this model does not have.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> openings = sh.Openings.of_answers(model, "demo/harmful", "demo/benign")
        >>> scores = sh.refusal_log_odds(model, prompts, openings)
        >>> [str(head) for head, _ in scores.top(2)]
        ['L1H3', 'L2H6']
    """
    screening = resolve_screen(screen)
    beside = partial(LogOdds.beside, openings, screening)
    search = Search.start(model, prompts, template, ablation, run, beside)
    told = {"openings": openings.describe(model)}

    def measure() -> LogOdds:
        return LogOdds(model, openings, search.original)

    return _scan(search, measure, told, candidates, given, screening, "refusal_log_odds")


@anywhere
def generalized_ships(
    model: Model,
    prompts: Prompts,
    *,
    rank: int = 1,
    centre: bool = False,
    site: Site = "final_norm",
    reading: Reading = "left",
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    candidates: HeadsLike | None = None,
    given: HeadsLike = (),
    screen: Screen = "off",
    run: Run = Run(),
) -> HeadScores:
    """Scores heads by how far ablating each turns the prompts' states as a set (paper Eq. 11).

    The last tokens' states of all prompts are stacked; the score is the sum of the principal
    angles, in radians, between the first `rank` left singular vectors of the original stack and
    of the ablated one. The defaults are what the paper's code does, with exact small angles.
    Eq. 11 can be read in other ways, by `reading` (docs/methods.md).

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`, and more than `rank`.
        rank: how many singular vectors. Uncentred, the first one is nearly the constant vector.
        centre: subtract the mean state first.
        site: `"final_norm"` (after the final norm with its weight) or `"resid_post"` (before it).
        reading: `"left"` singular vectors, or the `"right"` ones; `"left-nested"` and
            `"right-nested"`: of the first r vectors, for each r up to `rank`, the r-th angle
            alone. `"legacy-dim0"` is no reading of the paper: the angle, in degrees, between
            hidden coordinate 0 of all prompts and the same ablated, which the released code
            computed until June 2025. Its measure is called `"legacy_dim0"`.
        template: as in `ships`, and so the following.
        ablation: an ablation or its name.
        candidates: the heads to score.
        given: heads that are ablated together with each candidate.
        screen: which heads are scored exactly.
        run: how it runs.

    Returns:
        Scores in radians, from 0 to `rank` times pi/2. Costs as much as `ships`.

    Raises:
        SafeheadError: as `ships`; or if `rank` is too large for the number of prompts, or `site`
            cannot be read.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> scores = sh.generalized_ships(model, prompts, candidates=["L1H3", "L2H6"])
        >>> [(str(head), round(score, 2)) for head, score in scores.ranked()]  # radians
        [('L1H3', 0.15), ('L2H6', 0.08)]
    """
    screening = resolve_screen(screen)
    beside = partial(Rotation.beside, rank, reading, screening)
    search = Search.start(model, prompts, template, ablation, run, beside)
    told = rotation_settings(search, rank, centre, site, reading)
    measure = partial(Rotation.of, search, rank, centre, site, reading)
    return _scan(search, measure, told, candidates, given, screening, "generalized_ships")


def _scan(
    search: Search,
    make: Callable[[], Divergence | LogOdds | Rotation],
    told: dict[str, Any],
    candidates: HeadsLike | None,
    given: HeadsLike,
    screening: Screening | None,
    name: str,
) -> HeadScores:
    """Scores heads by a measure, which is made when the run directory is open.

    Args:
        search: the model, its prompts and the ablation.
        make: makes the measure.
        told: what else the measure was told.
        candidates: the heads to score.
        given: heads that are ablated together with each.
        screening: which heads are scored exactly.
        name: the function's.
    """
    ablated = parse_heads(given, *search.shape)
    scored = search.candidates(candidates, ablated)
    settings = {
        **told,
        "given": [str(head) for head in ablated],
        **screening_settings(screening),
    }
    search.open_directory(name, settings, scored)
    measure = make()
    label = name.replace("_", " ")
    rows, screened = score(search, measure, scored, ablated, label, screening, TOP)
    apart = not isinstance(measure, Rotation)
    per_prompt = rows.unflatten(0, (search.batch.places, -1)).mean(0) if apart else None
    return HeadScores(
        measure=measure.measure,
        unit=measure.unit,
        values=rows[0] if per_prompt is None else per_prompt.mean(0),
        per_prompt=per_prompt,
        given=ablated,
        provenance=search.provenance(settings),
        screening=screened,
        signed=measure.signed,
    )

"""Sahara: a search for the group of heads that carries the refusal (paper Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Group, HeadsLike
from safehead_tl.measures.angles import Reading
from safehead_tl.measures.rotation import Rotation, rotation_settings
from safehead_tl.models import Model, Site
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import HeadGroup, HeadScores
from safehead_tl.scan import (
    Run,
    Screen,
    Search,
    anywhere,
    resolve_screen,
    score,
    screening_settings,
)


@dataclass(frozen=True)
class _Path:
    """A group, with the steps in which its heads were added."""

    heads: Group = ()
    steps: tuple[HeadScores, ...] = ()
    score: float = 0.0


@anywhere
def sahara(
    model: Model,
    prompts: Prompts,
    size: int = 3,
    *,
    beam: int = 1,
    rank: int = 1,
    centre: bool = False,
    site: Site = "final_norm",
    reading: Reading = "left",
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    candidates: HeadsLike | None = None,
    screen: Screen = "off",
    run: Run = Run(),
) -> HeadGroup:
    """Grows a group of heads: each step adds the head with which generalized Ships is largest.

    Every step compares the model with the whole group ablated to the *original* model. With a
    `beam` each step adds every head to each of the `beam` best groups so far, and goes on with the
    `beam` best of what comes out, whoever they came from. For two heads that is never below
    greedy; for more it can be, because the group that greedy would go on with may drop out.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`, and more than `rank`.
        size: how many heads to choose. The paper finds 3 best in most cases, and goes up to 5.
        beam: how many groups each step goes on with. 1, the paper's, is greedy; as many as there
            are heads, and `size=2`, compares all pairs.
        rank: as in `generalized_ships`, and so the following.
        centre: subtract the mean state first.
        site: where states are read.
        reading: how Eq. 11 is read.
        template: as in `ships`, and so the following.
        ablation: an ablation or its name.
        candidates: the heads to choose from; by default all.
        screen: as in `ships`; every step screens anew, for the `beam` highest heads.
        run: how it runs.

    Returns:
        The best group found, its heads in the order in which they were added, with every step's
        scores in radians (`legacy-dim0`: degrees); with a beam also the groups that it was ahead
        of at the end. Costs 1 + (`size` - 1) x `beam` scans.

    Raises:
        SafeheadError: as `generalized_ships`; if `size` is below 1 or above the number of heads to
            choose from, or `beam` below 1.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> group = sh.sahara(model, prompts, size=2)
        >>> group
        <HeadGroup: L1H3, L2H6>
        >>> [round(score, 2) for score in group.scores]
        [0.15, 0.73]
    """
    screening = resolve_screen(screen)
    beside = partial(Rotation.beside, rank, reading, screening)
    search = Search.start(model, prompts, template, ablation, run, beside)
    pool = search.candidates(candidates)
    if not (isinstance(size, int) and 1 <= size <= len(pool)):
        raise SafeheadError(f"size={size}: choose from 1 to {len(pool)} heads")
    if not (isinstance(beam, int) and beam >= 1):
        raise SafeheadError(f"beam={beam!r}: go on with 1 group or more")
    told = rotation_settings(search, rank, centre, site, reading)
    wide = {"beam": beam} if beam > 1 else {}
    chosen_by = {**told, "size": size, **wide, **screening_settings(screening)}
    search.open_directory("sahara", chosen_by, pool)
    search.several = beam > 1
    measure = Rotation.of(search, rank, centre, site, reading)
    paths = [_Path()]
    for number in range(1, size + 1):
        found: dict[frozenset[object], _Path] = {}
        for place, path in enumerate(paths, 1):
            label = f"sahara, head {number} of {size}"
            if len(paths) > 1:
                label += f", group {place} of {len(paths)}"
            left = search.candidates(pool, path.heads)
            scores, screened = score(search, measure, left, path.heads, label, screening, beam)
            settings = {**chosen_by, "given": [str(head) for head in path.heads]}
            step = HeadScores(
                measure=measure.measure,
                unit=measure.unit,
                values=scores[0],
                per_prompt=None,
                given=path.heads,
                provenance=search.provenance(settings),
                screening=screened,
            )
            for head, value in step.top(beam):
                grown = _Path((*path.heads, head), (*path.steps, step), value)
                found.setdefault(frozenset(grown.heads), grown)
        paths = sorted(found.values(), key=lambda path: -path.score)[:beam]
    best, *others = paths
    return HeadGroup(
        heads=best.heads,
        steps=best.steps,
        provenance=search.provenance(chosen_by),
        runners_up=tuple((path.heads, path.score) for path in others),
    )

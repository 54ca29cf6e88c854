"""Sahara: a greedy search for the group of heads that carries the refusal (paper Algorithm 1)."""

from __future__ import annotations

from functools import partial

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike
from safehead_tl.measures.rotation import Rotation, rotation_settings
from safehead_tl.models import Model, Site
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import HeadGroup, HeadScores
from safehead_tl.scan import Run, Screen, Search, resolve_screen, score, screening_settings


def sahara(
    model: Model,
    prompts: Prompts,
    size: int = 3,
    *,
    rank: int = 1,
    centre: bool = False,
    site: Site = "final_norm",
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    candidates: HeadsLike | None = None,
    screen: Screen = "off",
    run: Run = Run(),
) -> HeadGroup:
    """Grows a group of heads: each step adds the head with which generalized Ships is largest.

    Every step compares the model with the whole group ablated to the *original* model.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`, and more than `rank`.
        size: how many heads to choose. The paper finds 3 best in most cases, and goes up to 5.
        rank: as in `generalized_ships`, and so the following.
        centre: subtract the mean state first.
        site: where states are read.
        template: as in `ships`, and so the following.
        ablation: an ablation or its name.
        candidates: the heads to choose from; by default all.
        screen: as in `ships`; every step screens anew, for the one highest head.
        run: how it runs.

    Returns:
        The heads in the order chosen, with every step's scores in radians. Costs `size` scans.

    Raises:
        SafeheadError: as `generalized_ships`; or if `size` is below 1 or above the number of
            heads to choose from.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> group = sh.sahara(model, prompts, size=2)
        >>> group
        <HeadGroup: L1H3, L2H6>
        >>> [round(score, 2) for score in group.scores]
        [0.15, 0.73]
    """
    screening = resolve_screen(screen)
    beside = partial(Rotation.beside, rank, screening)
    search = Search.start(model, prompts, template, ablation, run, beside)
    pool = search.candidates(candidates)
    if not (isinstance(size, int) and 1 <= size <= len(pool)):
        raise SafeheadError(f"size={size}: choose from 1 to {len(pool)} heads")
    told = rotation_settings(search, rank, centre, site)
    chosen_by = {**told, "size": size, **screening_settings(screening)}
    search.open_directory("sahara", chosen_by, pool)
    measure = Rotation.of(search, rank, centre, site)
    group: tuple[Head, ...] = ()
    steps: list[HeadScores] = []
    for number in range(1, size + 1):
        label = f"sahara, head {number} of {size}"
        left = search.candidates(pool, group)
        scores, screened = score(search, measure, left, group, label, screening, top=1)
        settings = {**chosen_by, "given": [str(head) for head in group]}
        step = HeadScores(
            measure="generalized_ships",
            unit="radians",
            values=scores[0],
            per_prompt=None,
            given=group,
            provenance=search.provenance(settings),
            screening=screened,
        )
        steps.append(step)
        group = (*group, step.top(1)[0][0])
    final = search.provenance(chosen_by)
    return HeadGroup(heads=group, steps=tuple(steps), provenance=final)

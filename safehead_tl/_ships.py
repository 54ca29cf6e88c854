"""Ships: how far the model's answer moves when one head is ablated.

Per query it is a divergence of next-token distributions (paper Eq. 9); for a data set a rotation
of the space that the prompts' last states span (Eq. 11).
"""

from __future__ import annotations

from collections.abc import Sequence

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl._ablation import Ablation
from safehead_tl._heads import HeadsLike, parse_heads
from safehead_tl._models import Model, Site, next_token_log_probs
from safehead_tl._results import HeadScores
from safehead_tl._rotation import Rotation
from safehead_tl._search import Search

ROWS_PER_UNEMBEDDING = 64


def ships(
    model: Model,
    prompts: Sequence[str],
    *,
    template: str = "paper",
    ablation: str | Ablation = "undifferentiated",
    heads: HeadsLike | None = None,
    group: HeadsLike = (),
    max_rows: int | None = None,
    progress: bool = True,
) -> HeadScores:
    """Scores heads by how far ablating each moves the next-token distribution (paper Eq. 9).

    Ships is KL(original ‖ ablated) at the last prompt token over the full vocabulary, in nats. It
    has no sign: it says that the answer moves, not where to.

    Args:
        model: a `HookedTransformer`, as `load_model` gives it.
        prompts: the queries.
        template: `"direct"`, `"paper"`, `"chat"` or a text with `{query}`.
        ablation: an ablation or its name.
        heads: the heads to score; by default all.
        group: heads that are ablated together with each scored one.
        max_rows: most (head, prompt) pairs in one pass; lower it when memory runs out.
        progress: show progress bars.

    Returns:
        Scores in nats, `values` averaged over prompts and `per_prompt`. Each head and prompt
        costs (n_layers + 1) / 2 of the model's layers on average.

    Raises:
        SafeheadError: for prompts, template, ablation or heads that cannot be used, or if a
            score comes out as no finite number.
    """
    search = Search.start(model, prompts, template, ablation, max_rows, progress)
    chosen = parse_heads(group, *search.shape)
    candidates = search.candidates(heads, chosen)
    with torch.no_grad():
        original = next_token_log_probs(model, search.original.last)

    def measure(
        states: Float[Tensor, "head prompt d_model"],
    ) -> Float[Tensor, "prompt head"]:
        return _divergence(model, original, states)

    per_prompt = search.score(measure, candidates, chosen, "ships")
    settings = {"group": [str(head) for head in chosen]}
    return HeadScores(
        measure="ships",
        unit="nats",
        values=per_prompt.mean(0),
        per_prompt=per_prompt,
        group=chosen,
        provenance=search.provenance(settings),
    )


def generalized_ships(
    model: Model,
    prompts: Sequence[str],
    *,
    rank: int = 1,
    centre: bool = False,
    site: Site = "final_norm",
    template: str = "paper",
    ablation: str | Ablation = "undifferentiated",
    heads: HeadsLike | None = None,
    group: HeadsLike = (),
    max_rows: int | None = None,
    progress: bool = True,
) -> HeadScores:
    """Scores heads by how far ablating each turns the prompts' states as a set (paper Eq. 11).

    The last tokens' states of all prompts are stacked; the score is the sum of the principal
    angles, in radians, between the first `rank` left singular vectors of the original stack and
    of the ablated one. The defaults are what the paper's code does, with exact small angles.

    Args:
        model: a `HookedTransformer`, as `load_model` gives it.
        prompts: the queries; more than `rank`.
        rank: how many singular vectors. Uncentred, the first one is nearly the constant vector.
        centre: subtract the mean state first.
        site: `"final_norm"` (after the final norm with its weight) or `"resid_post"` (before it).
        template: `"direct"`, `"paper"`, `"chat"` or a text with `{query}`.
        ablation: an ablation or its name.
        heads: the heads to score; by default all.
        group: heads that are ablated together with each scored one.
        max_rows: most (head, prompt) pairs in one pass; lower it when memory runs out.
        progress: show progress bars.

    Returns:
        Scores in radians, from 0 to `rank` times pi/2. Costs as much as `ships`.

    Raises:
        SafeheadError: as `ships`; or if `rank` is too large for the number of prompts, or `site`
            cannot be read.
    """
    search = Search.start(model, prompts, template, ablation, max_rows, progress)
    chosen = parse_heads(group, *search.shape)
    candidates = search.candidates(heads, chosen)
    measure = Rotation.of(search, rank, centre, site)
    scores = search.score(measure, candidates, chosen, "generalized ships")
    settings = {**measure.settings(), "group": [str(head) for head in chosen]}
    return HeadScores(
        measure="generalized_ships",
        unit="radians",
        values=scores[0],
        per_prompt=None,
        group=chosen,
        provenance=search.provenance(settings),
    )


@torch.no_grad()
def _divergence(
    model: Model,
    original: Float[Tensor, "prompt vocab"],
    states: Float[Tensor, "head prompt d_model"],
) -> Float[Tensor, "prompt head"]:
    """KL(original ‖ ablated) of the next token, from the ablated model's last states."""
    n_heads, n_prompts, _ = states.shape
    every = einops.rearrange(states, "head prompt d_model -> (head prompt) d_model")
    prompts = torch.arange(n_prompts, device=states.device).repeat(n_heads)
    found = []
    for rows, prompt in zip(
        every.split(ROWS_PER_UNEMBEDDING),
        prompts.split(ROWS_PER_UNEMBEDDING),
        strict=True,
    ):
        before, after = original[prompt], next_token_log_probs(model, rows)
        found.append((before.exp() * (before - after)).sum(-1))
    return einops.rearrange(torch.cat(found), "(head prompt) -> prompt head", head=n_heads)

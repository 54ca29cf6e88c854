"""What a scan's pieces of work cost, counted before it runs as its `Cost` counts while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from safehead_tl.scan.memory import Plan, even_slices


def piece_costs(plan: Plan, heads: Sequence[int], prompts: int, width: int) -> list[int]:
    """Tokens times layers of each piece of an exact scan, in the order of the pieces.

    Args:
        plan: how the scan is cut up.
        heads: how many heads are scored in each layer of the model.
        prompts: how many prompts.
        width: tokens in the longest one.
    """
    rest, parts = width - plan.prefix, len(even_slices(prompts, plan.part))
    a_layer, found = _a_layer(plan, prompts, width), []
    for layer, count in enumerate(heads):
        for number, some in enumerate(even_slices(count, plan.piece) if count else []):
            above = a_layer * (len(heads) - layer)
            if plan.apart and layer == len(heads) - 1:
                above = prompts
            cost = (some.stop - some.start) * above
            if plan.apart and (parts > 1 or number == 0):  # attention with all heads ablated
                cost += prompts * rest
            if parts > 1:  # streams of other prompts take the place of these
                cost += layer * a_layer
            found.append(cost)
    return found


def start_cost(plan: Plan, heads: Sequence[int], prompts: int, width: int, groups: int = 1) -> int:
    """Tokens times layers that each process runs besides its pieces: what heads are ablated from.

    Args:
        plan: how the scan is cut up.
        heads: how many heads are scored in each layer of the model.
        prompts: how many prompts.
        width: tokens in the longest one.
        groups: how many scans there are, one with nothing else ablated, the others with a group.
    """
    a_layer, walks = _a_layer(plan, prompts, width), 0
    if len(even_slices(prompts, plan.part)) == 1:
        walks = groups - 1 if plan.keep else groups
    return a_layer * (len(heads) + walks * max(at for at, count in enumerate(heads) if count))


def screen_cost(
    plan: Plan, layers: int, prompts: int, width: int, probes: int, points: int, few: int
) -> int:
    """Tokens times layers of first-order effects of all heads, by an ablation that is separable.

    Args:
        plan: how the scan is cut up.
        layers: of the model.
        prompts: how many prompts.
        width: tokens in the longest one.
        probes: how many directions gradients are taken in.
        points: at how many places on the way to all heads ablated.
        few: prompts that these are taken of.
    """
    kept = plan.keep and not plan.prefix
    found = prompts * width * (layers * (2 + probes) + (0 if kept else layers - 1))
    return found + 6 * points * few * width * layers


def _a_layer(plan: Plan, prompts: int, width: int) -> int:
    """Tokens that a run of all prompts takes through a layer: the prefix once for each part."""
    parts = len(even_slices(prompts, plan.part))
    return prompts * (width - plan.prefix) + parts * plan.prefix

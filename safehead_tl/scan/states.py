"""The scan: the last token's state for every head ablated in turn, exactly, at least cost.

A head changes nothing below its own layer, so its run resumes there; many heads share a pass, each
row of the batch with its own head ablated. In the head's own layer all other heads do what they
did before, so attention is not run again: its output changes by what the head itself contributes.
In the last layer only the last query counts. What all prompts begin with is run once for each
head, and its keys and values are shared.

For ablations that do not act on each head by itself, and for models whose passes cannot be taken
apart, whole layers run instead, from the head's own on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation, HeadMask, group_hooks, must_fire
from safehead_tl.models import (
    Hook,
    Model,
    Past,
    attention_given,
    run_layers,
    run_prefix,
    run_to_last_state,
)
from safehead_tl.scan.baseline import Baseline, Stream
from safehead_tl.scan.effects import DirectEffects, direct_effects
from safehead_tl.scan.ledger import Cost
from safehead_tl.scan.memory import Passes, Plan, even_slices


@dataclass(eq=False)
class Scan:
    """Ablates heads in addition to a baseline's group."""

    _model: Model
    _baseline: Baseline
    _ablation: Ablation
    _plan: Plan
    _passes: Passes
    _cost: Cost

    def __post_init__(self) -> None:
        self._ablated = self._apart if self._plan.apart else self._whole
        self._effects: dict[tuple[int, int], tuple[DirectEffects | None, DirectEffects]] = {}

    @torch.no_grad()
    def states(self, layer: int, heads: list[int]) -> Float[Tensor, "head prompt d_model"]:
        """The last token's state after the last layer, with each of these heads ablated alone."""
        parts = []
        for part in self._baseline.parts:
            stream = self._baseline.before(part, layer)
            some = even_slices(len(heads), max(1, self._passes.rows // len(stream.rest)))
            found = [self._ablated(stream, part, layer, heads[chosen]) for chosen in some]
            parts.append(torch.cat(found))
        return torch.cat(parts, 1)

    def _whole(self, stream: Stream, part: slice, layer: int, heads: list[int]) -> Tensor:
        """Whole layers from the heads' own on."""
        found = []
        for rows in self._rows(stream):
            some = stream.prompts(rows).repeat(len(heads))
            own = self._row_heads(layer, heads, len(some.rest))
            ablation = self._ablation.on(some.numbers)
            hooks = ablation.hooks(self._model, layer, own) + self._group_hooks_after(layer, some)
            found.append(self._to_last_state(some, layer, hooks, heads, apart=False))
        return torch.cat(found, 1)

    def _apart(self, stream: Stream, part: slice, layer: int, heads: list[int]) -> Tensor:
        """The heads' own layer without attention, the last one for the last query."""
        on_prefix, effects = self._direct_effects(part, layer, stream)
        last = layer == self._model.cfg.n_layers - 1
        past = None
        if stream.prefix is not None and on_prefix is not None and not last:
            past = self._prefixes(stream.prefix, on_prefix, layer, heads)
        found = []
        for rows in self._rows(stream):
            some = stream.prompts(rows).repeat(len(heads))
            if last:
                some = replace(some, rest=some.rest[:, -1:])
            self._cost.add(some.rest, 1)
            with attention_given(self._model, layer, effects.ablated(heads, rows)):
                after = run_layers(self._model, some.rest, some.mask, start=layer, stop=layer + 1)
            some = replace(some, rest=after)
            if last:
                found.append(after[:, 0].unflatten(0, (len(heads), -1)))
                continue
            hooks = self._group_hooks_after(layer, some)
            found.append(self._to_last_state(some, layer + 1, hooks, heads, apart=True, past=past))
        return torch.cat(found, 1)

    def _to_last_state(
        self,
        stream: Stream,
        layer: int,
        hooks: list[Hook],
        heads: list[int],
        *,
        apart: bool,
        past: Past | None = None,
    ) -> Float[Tensor, "head prompt d_model"]:
        self._cost.add(stream.rest, self._model.cfg.n_layers - layer)
        with must_fire(hooks) as counted:
            states = run_to_last_state(
                self._model,
                stream.rest,
                stream.mask,
                start=layer,
                apart=apart,
                hooks=counted,
                positions=stream.positions,
                past=past,
            )
        return states.unflatten(0, (len(heads), -1))

    def _rows(self, stream: Stream) -> list[slice]:
        return even_slices(len(stream.rest), self._passes.rows)

    def _direct_effects(
        self, part: slice, layer: int, stream: Stream
    ) -> tuple[DirectEffects | None, DirectEffects]:
        if (part.start, layer) not in self._effects:
            self._effects.clear()
            self._effects[part.start, layer] = direct_effects(
                self._model, layer, stream, self._ablation, self._baseline.group, self._passes.rows
            )
            self._cost.add(stream.rest, 1)
        return self._effects[part.start, layer]

    def _prefixes(
        self,
        prefix: Float[Tensor, "1 prefix d_model"],
        effects: DirectEffects,
        layer: int,
        heads: list[int],
    ) -> Past:
        """Keys and values of the prefix with each head ablated, in the layers after the head's."""
        model, end = self._model, self._model.cfg.n_layers
        resid = prefix.expand(len(heads), -1, -1)
        mask = torch.ones(resid.shape[:2], dtype=torch.long, device=resid.device)
        self._cost.add(resid, end - layer)
        with attention_given(model, layer, effects.ablated(heads, slice(None))):
            resid = run_layers(model, resid, mask, start=layer, stop=layer + 1)
        group = group_hooks(model, self._baseline.group, self._ablation, start=layer + 1)
        with must_fire(group) as hooks:
            _, past = run_prefix(model, resid, start=layer + 1, stop=end, hooks=hooks)
        return past

    def _group_hooks_after(self, layer: int, stream: Stream) -> list[Hook]:
        ablation = self._ablation.on(stream.numbers)
        return group_hooks(self._model, self._baseline.group, ablation, start=layer + 1)

    def _row_heads(self, layer: int, heads: list[int], rows: int) -> HeadMask:
        """For each row its own head, and the group's in the same layer."""
        chosen = torch.zeros(
            len(heads), self._model.cfg.n_heads, dtype=torch.bool, device=self._model.cfg.device
        )
        chosen[range(len(heads)), heads] = True
        chosen[:, [head.head for head in self._baseline.group if head.layer == layer]] = True
        return chosen.repeat_interleave(rows // len(heads), 0)

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

import logging

import einops
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor

from safehead_tl._ablation import Ablation, HeadMask
from safehead_tl._baseline import Baseline, Cost, Stream
from safehead_tl._effects import DirectEffects, direct_effects
from safehead_tl._forward import Past, attention_given, run_layers, run_prefix, run_to_last_state
from safehead_tl._hooking import group_hooks, must_fire
from safehead_tl._memory import Plan, even_slices
from safehead_tl._models import Hook, Model

logger = logging.getLogger(__name__)


class Scan:
    """Ablates heads in addition to a baseline's group.

    Attributes:
        rows: most (head, prompt) pairs in a pass; halved when a pass runs out of memory.
    """

    def __init__(
        self, model: Model, baseline: Baseline, ablation: Ablation, plan: Plan, cost: Cost
    ):
        self.rows = plan.rows
        self._model = model
        self._baseline = baseline
        self._ablation = ablation
        self._apart = plan.apart
        self._cost = cost
        self._effects: dict[tuple[int, int], tuple[DirectEffects | None, DirectEffects]] = {}

    @torch.no_grad()
    def states(self, layer: int, heads: list[int]) -> Float[Tensor, "head prompt d_model"]:
        """The last token's state after the last layer, with each of these heads ablated alone.

        Raises:
            RuntimeError: if not even a single row fits into memory.
        """
        while True:
            try:
                parts = [self._part(part, layer, heads) for part in self._baseline.parts]
                return torch.cat(parts, 1)
            except RuntimeError as error:
                if self.rows == 1 or not should_reduce_batch_size(error):
                    raise
            self.rows //= 2  # out here, because the exception holds on to the pass's tensors
            clear_device_cache(garbage_collection=True)
            logger.warning("out of memory: going on with at most %d rows a pass", self.rows)

    def _part(self, part: slice, layer: int, heads: list[int]) -> Tensor:
        stream = self._baseline.before(part, layer)
        n_prompts = len(stream.rest)
        found = []
        for some in even_slices(len(heads), max(1, self.rows // n_prompts)):
            chosen, past, effects = heads[some], None, None
            if self._apart:
                on_prefix, effects = self._direct_effects(part, layer, stream)
                past = self._prefixes(stream, on_prefix, layer, chosen)
            passes = [
                self._pass(stream.prompts(rows), rows, effects, layer, chosen, past)
                for rows in even_slices(n_prompts, self.rows)
            ]
            found.append(torch.cat(passes, 1))
        return torch.cat(found)

    def _direct_effects(
        self, part: slice, layer: int, stream: Stream
    ) -> tuple[DirectEffects | None, DirectEffects]:
        if (part.start, layer) not in self._effects:
            self._effects.clear()
            self._effects[part.start, layer] = direct_effects(
                self._model, layer, stream, self._ablation, self._baseline.group, self.rows
            )
            self._cost.add(stream.rest, 1)
        return self._effects[part.start, layer]

    def _prefixes(
        self, stream: Stream, effects: DirectEffects | None, layer: int, heads: list[int]
    ) -> Past | None:
        """Keys and values of the prefix with each head ablated, in the layers after the head's."""
        model, end = self._model, self._model.cfg.n_layers
        if stream.prefix is None or effects is None or layer == end - 1:
            return None
        resid = stream.prefix.expand(len(heads), -1, -1)
        with attention_given(model, layer, effects.ablated(heads, slice(None))):
            resid = run_layers(model, resid, stream.mask[:1], start=layer, stop=layer + 1)
        self._cost.add(resid, end - layer)
        with must_fire(self._group_hooks_after(layer)) as hooks:
            _, past = run_prefix(model, resid, start=layer + 1, stop=end, hooks=hooks)
        return past

    def _pass(
        self,
        stream: Stream,
        prompts: slice,
        effects: DirectEffects | None,
        layer: int,
        heads: list[int],
        past: Past | None,
    ) -> Tensor:
        """One pass: each of the heads, ablated on each of the stream's prompts."""
        model, count = self._model, len(heads)
        last = layer == model.cfg.n_layers - 1
        resid = stream.rest if effects is None or not last else stream.rest[:, -1:]
        resid, mask = resid.repeat(count, 1, 1), stream.mask.repeat(count, 1)
        positions = None if stream.positions is None else stream.positions.repeat(count, 1, 1)
        self._cost.add(resid, model.cfg.n_layers - layer)
        hooks = self._group_hooks_after(layer)
        start = layer
        if effects is None:
            hooks += self._ablation.hooks(model, layer, self._row_heads(layer, heads, len(mask)))
        else:
            with attention_given(model, layer, effects.ablated(heads, prompts)):
                resid = run_layers(model, resid, mask, start=layer, stop=layer + 1)
            start += 1
        if start == model.cfg.n_layers:
            states = resid[:, -1]
        else:
            with must_fire(hooks) as counted:
                states = run_to_last_state(
                    model,
                    resid,
                    mask,
                    start=start,
                    apart=self._apart,
                    hooks=counted,
                    positions=positions,
                    past=past,
                )
        return einops.rearrange(states, "(head row) d_model -> head row d_model", head=count)

    def _group_hooks_after(self, layer: int) -> list[Hook]:
        return group_hooks(self._model, self._baseline.group, self._ablation, start=layer + 1)

    def _row_heads(self, layer: int, heads: list[int], rows: int) -> HeadMask:
        """For each row its own head, and the group's in the same layer."""
        chosen = torch.zeros(
            len(heads), self._model.cfg.n_heads, dtype=torch.bool, device=self._model.cfg.device
        )
        chosen[range(len(heads)), heads] = True
        chosen[:, [head.head for head in self._baseline.group if head.layer == layer]] = True
        return chosen.repeat_interleave(rows // len(heads), 0)

"""Linearisation: what ablating each head does to the last states, to first order, all at once.

How an ablation changes each head's output z is known exactly: one more attention pass of each layer
tells. What becomes of a small change of z is a matter of one backward pass. So a backward pass for
each direction of interest serves all heads and all prompts.

The backward pass goes layer by layer, each run again from its stored residual stream: the graph of
one layer is alive at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation, HeadMask, group_hooks, must_fire
from safehead_tl.errors import SafeheadError
from safehead_tl.models import Hook, Model, hook_point, run_attention, runs_in_parts
from safehead_tl.prompts import PromptBatch
from safehead_tl.scan.baseline import Baseline, Stream, run_layer
from safehead_tl.scan.effects import hooks_outside
from safehead_tl.scan.ledger import Cost
from safehead_tl.scan.memory import Needs, Passes, Plan, even_slices

GRAPH = 3
"""The graph of a layer, as a multiple of what a pass without one holds at once."""


@dataclass(frozen=True)
class Linearisation:
    """First-order effects around a run with a group of heads ablated, or with none.

    Attributes:
        model: the model.
        batch: the prompts.
        ablation: what is done to heads, prepared.
        baseline: the run that heads are ablated from.
        plan: how much memory there is, and what the baseline keeps.
        passes: how many rows a pass may have.
        cost: counts the work.
    """

    model: Model
    batch: PromptBatch
    ablation: Ablation
    baseline: Baseline
    plan: Plan
    passes: Passes
    cost: Cost

    def effects(
        self, directions: Float[Tensor, "probe prompt d_model"]
    ) -> Float[Tensor, "probe prompt layer head"]:
        """How far ablating each head alone moves each prompt's last state along directions.

        Args:
            directions: in the space of the residual stream after the last layer.

        Returns:
            First-order changes of the inner products, in float32 on the CPU. Costs, in passes over
            all prompts, two or three and one for each direction.
        """

        def run() -> Tensor:
            parts = even_slices(len(self.batch.prompts), self._prompts_at_once(len(directions)))
            return torch.cat([self._part(part, directions[:, part]) for part in parts], 1)

        with _weights_held_fixed(self.model):
            return self.passes.fitted(run)

    def _prompts_at_once(self, probes: int) -> int:
        config, width = self.model.cfg, self.batch.tokens.shape[1]
        needs = Needs.of(config, 1, width)
        kept = 0 if self._kept else config.n_layers
        a_prompt = (kept + 3 * probes) * needs.stream + GRAPH * needs.row
        return max(1, min(self.passes.rows, self.plan.budget // 2 // a_prompt))

    @property
    def _kept(self) -> bool:
        """Whether the baseline has the streams of all layers, with nothing taken out of them."""
        return self.plan.keep and not self.plan.prefix

    def _streams(self, part: slice) -> Iterator[Stream]:
        """The residual stream of some prompts before each layer, from the last layer down."""
        baseline, inside = self.baseline, part
        if not self._kept:
            some = replace(
                self.batch,
                prompts=self.batch.prompts[part],
                tokens=self.batch.tokens[part],
                mask=self.batch.mask[part],
            )
            plan = replace(self.plan, prefix=0, part=len(some.prompts), keep=True)
            baseline, inside = (
                Baseline(
                    self.model, some, self.ablation, baseline.group, plan, self.passes, self.cost
                ),
                slice(None),
            )
        (whole,) = baseline.parts
        for layer in reversed(range(self.model.cfg.n_layers)):
            yield baseline.before(whole, layer).prompts(inside)

    def _part(
        self, part: slice, directions: Float[Tensor, "probe prompt d_model"]
    ) -> Float[Tensor, "probe prompt layer head"]:
        layer, gradients, found = self.model.cfg.n_layers, directions, []
        for stream in self._streams(part):
            layer -= 1
            gradients, effects = self._layer(layer, stream, gradients)
            found.append(effects.cpu())
        return torch.stack(found[::-1], 2)

    def _layer(
        self, layer: int, stream: Stream, gradients: Float[Tensor, "probe prompt *pos d_model"]
    ) -> tuple[Float[Tensor, "probe prompt pos d_model"], Float[Tensor, "probe prompt head"]]:
        """Takes gradients from after a layer to before it, by way of the heads' outputs.

        After the last layer they are those of the last position.
        """
        last = layer == self.model.cfg.n_layers - 1
        before = stream.rest.detach().requires_grad_()
        seen: list[Tensor] = []
        own = group_hooks(
            self.model,
            tuple(head for head in self.baseline.group if head.layer == layer),
            self.ablation,
        )
        with torch.enable_grad(), must_fire([*own, _looker(layer, seen)]) as hooks:
            after = run_layer(self.model, replace(stream, rest=before), layer, hooks)
            after = after[:, -1] if last else after
        (z,) = seen
        real = stream.mask.bool()[:, :, None]
        streams, outputs = [], []
        for number, gradient in enumerate(gradients, 1):
            of_stream, of_z = torch.autograd.grad(
                after, (before, z), gradient.to(after), retain_graph=number < len(gradients)
            )
            # Nothing real depends on padding. Layers may be on several devices.
            streams.append(of_stream.where(real.to(of_stream.device), 0))
            outputs.append(of_z.where(real[..., None].to(of_z.device), 0))
        self.cost.add(stream.rest, 1 + len(gradients))
        return torch.stack(streams), self._effects(layer, stream, z.detach(), outputs)

    @torch.no_grad()
    def _effects(
        self,
        layer: int,
        stream: Stream,
        z: Float[Tensor, "prompt pos head d_head"],
        gradients: list[Tensor],
    ) -> Float[Tensor, "probe prompt head"]:
        """Gradients of the heads' outputs, times how ablating each head changes these."""
        width = self.model.cfg.n_heads
        heads = torch.eye(width, dtype=torch.bool, device=stream.rest.device)
        if self.ablation.separable(self.model):  # then all at once is each alone
            change = self._outputs(layer, stream, heads.any(0, keepdim=True)) - z
            found = [_inner(gradient, change) for gradient in gradients]
            return torch.stack(found)
        heads[:, [head.head for head in self.baseline.group if head.layer == layer]] = True
        columns = []
        for head in heads.split(1):
            change = self._outputs(layer, stream, head) - z
            columns.append(
                torch.stack([_inner(gradient, change).sum(-1) for gradient in gradients])
            )
        return torch.stack(columns, -1)

    def _outputs(
        self, layer: int, stream: Stream, heads: HeadMask
    ) -> Float[Tensor, "prompt pos head d_head"]:
        """What the heads of a layer put out with some of them ablated."""
        hooks = self.ablation.hooks(self.model, layer, heads)
        outside = hooks_outside(layer, hooks)
        if outside:
            raise SafeheadError(
                f"{self.ablation.name} ablation hooks {', '.join(outside)}; screening sees only "
                "what changes in the heads' outputs z: use screen='off'"
            )
        self.cost.add(stream.rest, 1)
        seen: list[Tensor] = []
        with must_fire([*hooks, _looker(layer, seen)]) as counted:
            if runs_in_parts(self.model):
                run_attention(
                    self.model, layer, stream.rest, stream.mask, last_query=False, hooks=counted
                )
            else:
                run_layer(self.model, stream, layer, counted)
        return seen[0]


def _inner(
    gradient: Float[Tensor, "prompt pos head d_head"],
    change: Float[Tensor, "prompt pos head d_head"],
) -> Float[Tensor, "prompt head"]:
    return torch.einsum("pqhd,pqhd->ph", gradient.float(), change.float())


def _looker(layer: int, seen: list[Tensor]) -> Hook:
    def look(z: Tensor, hook: Any) -> Tensor:
        seen.append(z)
        return z  # so that a bridge goes on with this view of it, which gradients then reach

    return hook_point(layer, "z"), look


@contextmanager
def _weights_held_fixed(model: Model) -> Iterator[None]:
    """Inside the `with` block no gradient is kept for weights, which takes memory and time."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)

"""Linearisation: what ablating each head does to the last states, to first order, all at once.

How an ablation changes each head's output z is known exactly: one more attention pass of each layer
tells. What becomes of a small change of z is a matter of one backward pass. So a backward pass for
each direction of interest serves all heads and all prompts. The same is to be had on the way to a
run in which every head is ablated, where what is saturated here may not be.

The backward pass goes layer by layer, each run again from its stored residual stream: the graph of
one layer is alive at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
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
        share: how far all other heads' outputs have gone towards what they are ablated.
    """

    model: Model
    batch: PromptBatch
    ablation: Ablation
    baseline: Baseline
    plan: Plan
    passes: Passes
    cost: Cost
    share: float = 0.0

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
        found = self.by_parts(len(directions), lambda part: directions[:, part], lambda some: some)
        return torch.cat(found, 1)

    def by_parts(
        self,
        probes: int,
        directions: Callable[[slice], Float[Tensor, "probe some d_model"]],
        reduce: Callable[[Float[Tensor, "probe some layer head"]], Tensor],
    ) -> list[Tensor]:
        """The same for some prompts at a time, of which only what is made of them is kept."""

        def run() -> list[Tensor]:
            parts = even_slices(len(self.batch.prompts), self.prompts_at_once(probes))
            return [reduce(self._back(self._streams(part), directions(part))) for part in parts]

        with weights_held_fixed(self.model):
            return self.passes.fitted(run)

    def integrated(
        self, pull: Callable[[Tensor, slice], Tensor], points: int, prompts: range
    ) -> Float[Tensor, "prompt layer head"]:
        """Integrated gradients on the way to all heads ablated at once.

        At each point every head's output has gone a share of its way, and counts by how fast the
        rest of its way would move the model on from there.

        Args:
            pull: the gradient of what is attributed, `[1 prompt d_model]`, at last states of the
                prompts in a slice.
            points: how many, evenly spaced. Each costs six passes of the prompts.
            prompts: which prompts.
        """

        def run() -> Tensor:
            found = []
            most = self.prompts_at_once(1, self.model.cfg.n_layers)
            for part in even_slices(len(prompts), most):
                chosen = prompts[part]
                some = slice(chosen.start, chosen.stop, chosen.step)
                few = self.of(some)
                shares = [(number + 0.5) / points for number in range(points)]
                steps = (replace(few, share=share)._step(pull, some) for share in shares)
                found.append(sum(steps, torch.zeros((), dtype=torch.float64)) / points)
            return torch.cat(found)

        with weights_held_fixed(self.model):
            return self.passes.fitted(run)

    def _step(
        self, pull: Callable[[Tensor, slice], Tensor], prompts: slice
    ) -> Float[Tensor, "prompt layer head"]:
        streams, states = self._way()
        return self._back(reversed(streams), pull(states, prompts))[0]

    def of(self, some: slice) -> Linearisation:
        """The same of some of the prompts, run anew."""
        batch = replace(
            self.batch,
            prompts=self.batch.prompts[some],
            tokens=self.batch.tokens[some],
            mask=self.batch.mask[some],
        )
        plan = replace(self.plan, prefix=0, part=len(batch.prompts), keep=True)
        group = self.baseline.group
        baseline = Baseline(
            self.model,
            batch,
            self.ablation,
            group,
            plan,
            self.passes,
            self.cost,
            self.baseline.numbers[some],
        )
        return replace(self, batch=batch, plan=plan, baseline=baseline)

    @torch.no_grad()
    def _way(self) -> tuple[list[Stream], Float[Tensor, "prompt d_model"]]:
        """The streams before each layer on the way, and the last states."""
        (whole,) = self.baseline.parts
        stream, streams = self.baseline.before(whole, 0), []
        for layer in range(self.model.cfg.n_layers):
            streams.append(stream)
            with must_fire(self._hooks(layer, stream)) as hooks:
                stream = replace(stream, rest=run_layer(self.model, stream, layer, hooks))
            self.cost.add(stream.rest, 1)
        return streams, stream.rest[:, -1]

    def _hooks(self, layer: int, stream: Stream) -> list[Hook]:
        """Ablates the group's heads of a layer, and takes the others their share of the way."""
        own = tuple(head for head in self.baseline.group if head.layer == layer)
        hooks = group_hooks(self.model, own, self.ablation.on(stream.numbers))
        if self.share:
            every = torch.ones(1, self.model.cfg.n_heads, dtype=torch.bool)
            end = self._outputs(layer, stream, every.to(stream.rest.device))
            hooks += [(hook_point(layer, "z"), partial(_go, self.share, end))]
        return hooks

    def prompts_at_once(self, probes: int, streams: int = 0) -> int:
        """How many prompts' gradients go back at a time, with streams of others held."""
        config, width = self.model.cfg, self.batch.tokens.shape[1]
        streams = streams if self._kept else config.n_layers
        a_prompt = Needs.of(config, 1, width).backward(probes, streams)
        return max(1, min(self.passes.rows, self.plan.budget // 2 // a_prompt))

    @property
    def _kept(self) -> bool:
        """Whether the baseline has the streams of all layers, with nothing taken out of them."""
        return self.plan.keep and not self.plan.prefix

    def _streams(self, part: slice) -> Iterator[Stream]:
        """The residual stream of some prompts before each layer, from the last layer down."""
        baseline, inside = self.baseline, part
        if not self._kept:
            baseline, inside = self.of(part).baseline, slice(None)
        (whole,) = baseline.parts
        for layer in reversed(range(self.model.cfg.n_layers)):
            yield baseline.before(whole, layer).prompts(inside)

    def _back(
        self, streams: Iterator[Stream], directions: Float[Tensor, "probe prompt d_model"]
    ) -> Float[Tensor, "probe prompt layer head"]:
        """Backward through the layers, from the last one's stream to the first one's."""
        layer, gradients, found = self.model.cfg.n_layers, directions, []
        for stream in streams:
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
        with torch.enable_grad():
            traced = replace(stream, rest=before)
            with must_fire([*self._hooks(layer, traced), _looker(layer, seen)]) as hooks:
                after = run_layer(self.model, traced, layer, hooks)
            after = after[:, -1] if last else after
        (z,) = seen
        real = stream.mask.bool()[:, :, None]
        outputs = []
        streams = before.detach().new_empty(len(gradients), *before.shape) if last else gradients
        for number, gradient in enumerate(gradients, 1):
            of_stream, of_z = torch.autograd.grad(
                after, (before, z), gradient.to(after), retain_graph=number < len(gradients)
            )
            # Nothing real depends on padding. Layers may be on several devices.
            of_stream = of_stream.where(real.to(of_stream.device), 0)
            streams[number - 1] = of_stream.to(streams.device)
            outputs.append(of_z.where(real[..., None].to(of_z.device), 0))
        self.cost.add(stream.rest, 1 + len(gradients))
        return streams, self._effects(layer, stream, z.detach(), outputs)

    @torch.no_grad()
    def _effects(
        self,
        layer: int,
        stream: Stream,
        z: Float[Tensor, "prompt pos head d_head"],
        gradients: list[Tensor],
    ) -> Float[Tensor, "probe prompt head"]:
        """Gradients of the heads' outputs, times how ablating each head changes these.

        On the way the outputs z have gone a share of it: the whole is so much longer than the rest.
        """
        width = self.model.cfg.n_heads
        heads = torch.eye(width, dtype=torch.bool, device=stream.rest.device)
        if self.share or self.ablation.separable(self.model):  # all at once, which is each alone
            change = self._outputs(layer, stream, heads.any(0, keepdim=True)) - z
            change /= 1 - self.share
            return torch.stack([_inner(gradient, change) for gradient in gradients])
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
        hooks = self.ablation.on(stream.numbers).hooks(self.model, layer, heads)
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


def _go(share: float, end: Tensor, z: Tensor, hook: Any) -> Tensor:
    return z + share * (end - z)


def _looker(layer: int, seen: list[Tensor]) -> Hook:
    def look(z: Tensor, hook: Any) -> Tensor:
        seen.append(z)
        return z  # so that a bridge goes on with this view of it, which gradients then reach

    return hook_point(layer, "z"), look


@contextmanager
def weights_held_fixed(model: Model) -> Iterator[None]:
    """Inside the `with` block no gradient is kept for weights, which takes memory and time."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)

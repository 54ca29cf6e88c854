"""The run that heads are ablated from: the prompts, with a group of heads ablated or with none.

A scan visits layers in ascending order, and needs the residual stream before each. So the run goes
on layer by layer. Where memory allows, every layer's stream is kept; where not even one fits, the
prompts are held in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safehead_tl.ablations import Ablation, group_hooks, must_fire
from safehead_tl.heads import Head
from safehead_tl.models import Hook, Model, Past, embed, run_layers, run_prefix, run_to_last_state
from safehead_tl.prompts import PromptBatch
from safehead_tl.scan.ledger import Cost
from safehead_tl.scan.memory import Passes, Plan, even_slices


@dataclass(frozen=True)
class Stream:
    """The residual stream before a layer, for some of the prompts.

    Attributes:
        prefix: of the tokens that all prompts begin with, if they are run apart.
        rest: of the others, left-padded.
        mask: 1 where a token is, over prefix and rest.
        positions: the position embedding of shortformer models.
        numbers: which prompt of the batch each row is.
    """

    prefix: Float[Tensor, "1 prefix d_model"] | None
    rest: Float[Tensor, "prompt pos d_model"]
    mask: Int[Tensor, "prompt key"]
    positions: Float[Tensor, "prompt pos d_model"] | None
    numbers: Int[Tensor, " prompt"]

    def prompts(self, some: slice) -> Stream:
        """The stream of some of the prompts."""
        positions = None if self.positions is None else self.positions[some]
        return replace(
            self,
            rest=self.rest[some],
            mask=self.mask[some],
            positions=positions,
            numbers=self.numbers[some],
        )

    def repeat(self, count: int) -> Stream:
        """Every prompt `count` times: all prompts, then all again."""
        positions = None if self.positions is None else self.positions.repeat(count, 1, 1)
        rest, mask = self.rest.repeat(count, 1, 1), self.mask.repeat(count, 1)
        numbers = self.numbers.repeat(count)
        return replace(self, rest=rest, mask=mask, positions=positions, numbers=numbers)


def run_layer(
    model: Model, stream: Stream, layer: int, hooks: list[Hook], past: Past | None = None
) -> Float[Tensor, "prompt pos d_model"]:
    """Runs a layer on what is not prefix; `past` has the prefix's keys and values."""
    return run_layers(
        model,
        stream.rest,
        stream.mask,
        start=layer,
        stop=layer + 1,
        hooks=hooks,
        positions=stream.positions,
        past=past,
    )


class Baseline:
    """One run over all prompts, with a group of heads ablated.

    Attributes:
        group: the heads ablated.
        parts: which prompts are held at once.
        numbers: which prompts these are, of those that the ablation was prepared for.
    """

    def __init__(
        self,
        model: Model,
        batch: PromptBatch,
        ablation: Ablation,
        group: tuple[Head, ...],
        plan: Plan,
        passes: Passes,
        cost: Cost,
        numbers: Int[Tensor, " prompt"] | None = None,
    ):
        self.group = group
        self.numbers = torch.arange(len(batch.prompts)) if numbers is None else numbers
        self.parts = even_slices(len(batch.prompts), plan.part)
        self._model = model
        self._batch = batch
        self._ablation = ablation
        self._plan = plan
        self._passes = passes
        self._cost = cost
        self._streams: dict[tuple[int, int], Stream] = {}
        self._below: Baseline | None = None
        self._first = 0

    def also(self, heads: Sequence[Head], ablation: Ablation) -> Baseline:
        """The same run with more heads ablated, which goes on from the lowest layer of these."""
        grown = Baseline(
            self._model,
            self._batch,
            ablation,
            (*self.group, *heads),
            replace(self._plan, keep=False),
            self._passes,
            self._cost,
            self.numbers,
        )
        grown._below, grown._first = self, min(head.layer for head in heads)
        return grown

    @torch.no_grad()
    def before(self, part: slice, layer: int) -> Stream:
        """The stream before a layer, for one of the parts."""
        at = layer
        while at > self._first and (part.start, at) not in self._streams:
            at -= 1
        stream = self._streams.get((part.start, at))
        if stream is None and self._below is not None:
            stream = self._below.before(part, at)
        elif stream is None:
            stream = self._remember(part, 0, self._embed(part))
        for current in range(at, layer):
            prefix, rest = self._run(stream, current, self._layer)
            stream = replace(stream, prefix=prefix, rest=rest)
            self._remember(part, current + 1, stream)
        return stream

    @torch.no_grad()
    def last(self) -> Float[Tensor, "prompt d_model"]:
        """The last token's state after the last layer."""
        layer = self._model.cfg.n_layers - 1
        streams = (self.before(part, layer) for part in self.parts)
        return torch.cat([self._run(stream, layer, self._last_layer)[1] for stream in streams])

    def _remember(self, part: slice, layer: int, stream: Stream) -> Stream:
        if not self._plan.keep:
            self._streams.clear()
        self._streams[part.start, layer] = stream
        return stream

    def _embed(self, part: slice) -> Stream:
        tokens, mask = self._batch.tokens[part], self._batch.mask[part]
        shared = self._plan.prefix
        rest, positions = embed(self._model, tokens, mask)
        if not shared:
            return Stream(None, rest, mask, positions, self.numbers[part])
        first = tokens[:1, mask[0].bool()][:, :shared]
        prefix, _ = embed(self._model, first, torch.ones_like(first))
        # In a short prompt the end of the prefix comes before its own tokens: masked, as padding.
        own = (mask.cumsum(1) > shared).to(mask)[:, shared:]
        whole = torch.cat([torch.ones_like(mask[:, :shared]), own], 1)
        return Stream(prefix, rest[:, shared:], whole, None, self.numbers[part])

    def _run(
        self,
        stream: Stream,
        layer: int,
        run: Callable[[Stream, int, list[Hook], Past | None], Tensor],
    ) -> tuple[Tensor | None, Tensor]:
        """Runs a layer on the prefix, and `run` on the rest, a pass's rows at a time."""
        group = tuple(head for head in self.group if head.layer == layer)
        prefix, past = stream.prefix, None
        if prefix is not None:
            self._cost.add(prefix, 1)
            with must_fire(group_hooks(self._model, group, self._ablation)) as hooks:
                prefix, past = run_prefix(
                    self._model, prefix, start=layer, stop=layer + 1, hooks=hooks
                )
        found = []
        for rows in even_slices(len(stream.rest), self._passes.rows):
            some = stream.prompts(rows)
            ablation = self._ablation.on(some.numbers)
            with must_fire(group_hooks(self._model, group, ablation)) as hooks:
                found.append(run(some, layer, hooks, past))
        self._cost.add(stream.rest, 1)
        return prefix, torch.cat(found)

    def _layer(self, stream: Stream, layer: int, hooks: list[Hook], past: Past | None) -> Tensor:
        return run_layer(self._model, stream, layer, hooks, past)

    def _last_layer(
        self, stream: Stream, layer: int, hooks: list[Hook], past: Past | None
    ) -> Tensor:
        return run_to_last_state(
            self._model,
            stream.rest,
            stream.mask,
            start=layer,
            apart=self._plan.apart,
            hooks=hooks,
            positions=stream.positions,
            past=past,
        )

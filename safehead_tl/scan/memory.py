"""How a scan is cut up so that it fits into memory: rows in a pass, prompts held at once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.models import Model, runs_in_parts
from safehead_tl.prompts import PromptBatch
from safehead_tl.scan.run import Run, parse_bytes

logger = logging.getLogger("safehead_tl")

Result = TypeVar("Result")

TOKENS_PER_PASS = 16_384
"""Most tokens in a pass: enough to keep a GPU busy."""

CPU_ACTIVATION = 16 * 2**20
"""Bytes of an MLP's hidden layer in a pass on a CPU; much larger ones fall out of its caches."""

CPU_TOKENS = 512
"""But no fewer tokens than these: the weights are read once a pass."""

CPU_BUDGET = 2**30
"""Bytes to use on a CPU, unless less is free or `max_bytes` says otherwise."""

GPU_SHARE = 0.8
"""Share of a GPU's free memory to use, unless `max_bytes` says otherwise."""

GRAPH = 3
"""The graph of a layer, as a multiple of what a pass without one holds at once."""

WORTHWHILE = 0.2
"""A shared prefix is used if it saves this share of the tokens."""


@dataclass(frozen=True)
class Plan:
    """How a scan is cut up.

    Attributes:
        apart: run the last layer for the last query only, and attention of a head's own layer
            once for all heads. Otherwise layers run whole, from the head's own on.
        prefix: how many tokens at the start of all prompts are run once for each head.
        rows: most (head, prompt) pairs in a pass.
        part: how many prompts' streams are held at once.
        keep: hold the streams of all layers, not of one.
        piece: how many heads of a layer make a piece of work: those that share a pass, or, where
            prompts are held in parts, many more, because each part runs anew for each piece.
        budget: bytes to use beyond the model's weights.
    """

    apart: bool
    prefix: int
    rows: int
    part: int
    keep: bool
    piece: int
    budget: int


@dataclass(frozen=True)
class Beside:
    """Bytes that a measure takes beside the passes that it is made of.

    Attributes:
        once: at a time, at least.
        a_prompt: held for each prompt all the while.
        probes: how many gradients of all streams are held at a time, to screen.
    """

    once: int = 0
    a_prompt: int = 0
    probes: int = 0


@dataclass(frozen=True)
class Needs:
    """Bytes that parts of a scan take beyond the model's weights, as estimated before it runs.

    Attributes:
        row: a (head, prompt) pair in a pass.
        a_prefix: a head's prefix: its own pass, and its keys and values in every layer.
        stream: a prompt's residual stream in one layer.
        held: the same, with what attention and each head add to it there.
        states: a head's last states of all prompts, and their decomposition in float64.
        prompts: how many prompts there are.
        layers: how many layers.
    """

    row: int
    a_prefix: int
    stream: int
    held: int
    states: int
    prompts: int
    layers: int

    @classmethod
    def of(cls, config: Any, n_prompts: int, width: int, prefix: int = 0) -> Needs:
        """For prompts of `width` tokens that share the first `prefix`.

        Args:
            config: a TransformerLens config, or anything with its names for sizes and dtype.
            n_prompts: how many prompts.
            width: tokens in the longest one.
            prefix: tokens that are run once for each head.
        """
        size = torch.empty((), dtype=config.dtype).element_size()
        kept = 2 * prefix * config.n_layers * config.n_heads * config.d_head
        stream = size * width * config.d_model
        return cls(
            row=size * _row_elements(config, width - prefix, width),
            a_prefix=size * (_row_elements(config, prefix, prefix) + kept),
            stream=stream,
            held=4 * stream + 3 * size * width * config.n_heads * config.d_head,
            states=n_prompts * config.d_model * (size + 3 * 8),
            prompts=n_prompts,
            layers=config.n_layers,
        )

    def least(self, beside: Beside = Beside()) -> int:
        """With one row at a time, and what a measure takes."""
        passes = 2 * max(
            self.row + self.a_prefix, self.held, self.backward(beside.probes, self.layers)
        )
        return max(passes, self.held + beside.once) + 4 * self.states

    def backward(self, probes: int, streams: int) -> int:
        """To take a prompt's gradients back through a layer, with streams of others held."""
        return (streams + 3 * probes) * self.stream + GRAPH * self.row if probes else 0

    @property
    def kept(self) -> int:
        """To hold the streams of all layers, so that none runs twice."""
        return 2 * self.prompts * (self.held + self.layers * self.stream)


class Passes:
    """How large a pass may be: as planned, until one runs out of memory.

    Attributes:
        rows: most (head, prompt) pairs in a pass.
    """

    def __init__(self, rows: int):
        self.rows = rows

    def fitted(self, run: Callable[[], Result]) -> Result:
        """Runs something made of passes; if memory runs out, again with half the rows.

        Raises:
            RuntimeError: if not even a single row fits into memory.
        """
        while True:
            try:
                return run()
            except RuntimeError as error:
                if self.rows == 1 or not should_reduce_batch_size(error):
                    raise
            self.rows //= 2  # out here, because the exception holds on to the pass's tensors
            clear_device_cache(garbage_collection=True)
            logger.warning("out of memory: going on with at most %d rows a pass", self.rows)


def even_slices(length: int, most: int) -> list[slice]:
    """Cuts a range into as few slices as hold at most `most` each, of nearly the same size."""
    count = -(-length // most)
    ends = [length * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def make_plan(
    model: Model,
    batch: PromptBatch,
    ablation: Ablation,
    run: Run,
    beside: Beside = Beside(),
    device: torch.device | None = None,
) -> Plan:
    """Cuts a scan up so that it fits.

    Args:
        model: the model.
        batch: the prompts.
        ablation: what will be done to heads.
        run: how much memory and how many rows it may take, and whether a prefix is shared.
        beside: what the measure takes.
        device: where it will run, if not where the prompts are.

    Raises:
        SafeheadError: if `max_bytes` leaves no room for a prompt.
    """
    config, n_prompts = model.cfg, len(batch.prompts)
    width, device = batch.tokens.shape[1], device or batch.tokens.device
    held = n_prompts * (beside.a_prompt + ablation.bytes_a_prompt(config, width))
    budget = max(1, budget_of(run, device) - held)
    apart = ablation.separable(model) and runs_in_parts(model)
    shares = apart and run.shared_prefix and not ablation.by_prompt
    prefix = _useful_prefix(model, batch) if shares else 0
    needs = Needs.of(config, n_prompts, width)
    least = needs.least(beside)
    if prefix:
        shared = Needs.of(config, n_prompts, width, prefix)
        enough = max(shared.least(beside), 4 * shared.a_prefix)
        least = min(least, enough)
        prefix, needs = (prefix, shared) if budget >= enough else (0, needs)
    if ablation.tokens_at_once:
        a_token = Needs.of(config, 1, width).row // width
        least = max(least, max(ablation.tokens_at_once, width) * a_token + 2 * needs.states)
    if run.max_bytes is not None and budget < least:
        raise SafeheadError(
            f"max_bytes={run.max_bytes} is too little: {n_prompts} prompts of {width} tokens take "
            f"{readable(held + least)} beyond the model's weights: give max_bytes={held + least}"
        )
    rows = run.max_rows
    if rows is None:
        hidden = torch.empty((), dtype=config.dtype).element_size() * max(
            config.d_mlp or 0, config.d_model
        )
        fast = TOKENS_PER_PASS
        if device.type == "cpu":
            fast = min(fast, max(CPU_TOKENS, CPU_ACTIVATION // hidden))
        a_head = n_prompts * needs.row + needs.a_prefix  # in a pass of whole heads
        room = budget / 2
        fitting = n_prompts * int(room / a_head) or int((room - needs.a_prefix) / needs.row)
        rows = max(1, min(fast // (width - prefix), fitting))
    keep = needs.kept <= budget
    part = n_prompts if keep else max(1, min(n_prompts, int(budget / 2 / needs.held)))
    piece = rows // n_prompts if part == n_prompts else config.n_heads
    piece = max(1, min(piece, int(budget / 4 / needs.states)))
    return Plan(apart, prefix, rows, part, keep, piece, budget)


def readable(count: int) -> str:
    """A number of bytes as people read it."""
    number, units = float(count), iter(("bytes", "KiB", "MiB", "GiB"))
    unit = next(units)
    while number >= 1024 and unit != "GiB":
        number, unit = number / 1024, next(units)
    return f"{number:.3g} {unit}" if number < 1000 else f"{number:,.0f} {unit}"


def budget_of(run: Run, device: torch.device) -> int:
    """Bytes that a run may use beyond the model's weights."""
    return free_bytes(device) if run.max_bytes is None else parse_bytes(run.max_bytes)


def free_bytes(device: torch.device) -> int:
    """Memory to use by default: four fifths of a GPU's, at most 1 GiB elsewhere."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * (free + cached))
    return min(CPU_BUDGET, psutil.virtual_memory().available // 2)


def _row_elements(config: Any, n_queries: int, n_keys: int) -> int:
    """Numbers alive at once while a row goes through a layer, at most."""
    heads = config.n_heads * config.d_head
    a_token = 6 * config.d_model + max(4 * heads, 3 * (config.d_mlp or 0))
    return n_queries * a_token + 4 * config.n_heads * n_queries * n_keys + 6 * n_keys * heads


def _useful_prefix(model: Model, batch: PromptBatch) -> int:
    """How many tokens to share.

    With prompts of different length, padding lies between the prefix and what follows. Attention
    that looks at distances between columns would take it for tokens. And dynamic NTK rotates by
    how many tokens a pass has.
    """
    config, n_prompts = model.cfg, len(batch.prompts)
    width = batch.tokens.shape[1]
    windowed = config.use_local_attn and (config.window_size or 0) < width
    by_column = config.positional_embedding_type == "alibi" or windowed or config.use_logn_attn
    if config.use_dynamic_ntk_rope or (by_column and not batch.mask.all()):
        return 0
    prefix = batch.shared_prefix
    return prefix if prefix * (1 - 1 / n_prompts) >= WORTHWHILE * width else 0

"""What a run will take, before it runs: pieces, passes, memory, hours. From the config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from transformers import PretrainedConfig

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.cluster.sharing import PIECES_EACH, Shared, share
from safehead_tl.cluster.trial import LiveBytes, trial_peak
from safehead_tl.errors import SafeheadError
from safehead_tl.generation import Decoding, fitting_rows, room_behind, text_bytes
from safehead_tl.heads import Head
from safehead_tl.measures import TOP, Divergence, Rotation, ships, subspace
from safehead_tl.models import Model, load_model, parse_dtype, shortened, sketch
from safehead_tl.prompts import PromptBatch, Prompts, Template, encode
from safehead_tl.results import figures
from safehead_tl.scan import (
    GPU_SHARE,
    HALVES,
    ON_THE_WAY,
    Beside,
    Needs,
    Passes,
    Plan,
    Run,
    Screen,
    Screening,
    ScreeningMeasure,
    Search,
    check_run,
    even_slices,
    make_plan,
    parse_bytes,
    piece_costs,
    readable,
    resolve_screen,
    screen_cost,
    start_cost,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Measure: TypeAlias = Literal["ships", "generalized-ships", "sahara", "evaluate"]


@dataclass(frozen=True, repr=False)
class Forecast:
    """What a run will take. Of screened scans, which decide as they go, there are two ends.

    Attributes:
        model: its name.
        measure: what will be run.
        layers: of the model.
        heads: in each layer.
        prompts: how many.
        width: tokens in the longest one.
        pieces: tokens times layers of each piece of work, in their order; screened, of the
            longest that a scan may become.
        least: the same of the shortest; without screening the same.
        start: tokens times layers that each replica runs before and between its pieces.
        weights: bytes of the model's weights.
        peak: bytes that a replica holds at once beyond the weights, by a trial run without numbers;
            for `evaluate` as the engine reckons.
        budget: bytes that it may take beyond the weights.
        gpus: how many there are; 0: none.
        gpus_each: how many of them a replica takes.
        arithmetic: floating point operations that a token takes in a layer: two for each weight.
        rate: floating point operations a second that a replica reaches; `None`: not known.
        max_rows: what the run has to be told for pieces of this size; `None`: nothing.
    """

    model: str
    measure: Measure
    layers: int
    heads: int
    prompts: int
    width: int
    pieces: tuple[int, ...]
    least: tuple[int, ...]
    start: int
    weights: int
    peak: int
    budget: int
    gpus: int
    gpus_each: int
    arithmetic: float
    rate: float | None
    max_rows: int | None

    @property
    def passes(self) -> float:
        """Forward passes of one prompt, as `provenance.forward_passes` counts them."""
        return (sum(self.pieces) + self.start) / (self.layers * self.width)

    @property
    def fewest_passes(self) -> float:
        """The same of the shortest that a screened scan may be."""
        return (sum(self.least) + self.start) / (self.layers * self.width)

    @property
    def replicas(self) -> int:
        """How many replicas there is room for."""
        return max(1, self.gpus // self.gpus_each)

    @property
    def memory(self) -> int:
        """Bytes that a replica holds at once, its weights among them."""
        return self.weights + self.peak

    def shared(self, replicas: int | None = None) -> Shared:
        """How replicas share the pieces, in seconds, if none of them is slow or dies.

        Args:
            replicas: how many; by default as many as there is room for.

        Raises:
            SafeheadError: if no rate is known.
        """
        if self.rate is None:
            raise SafeheadError(
                "no hours are known without a rate: give plan rate=, the floating point operations "
                "a second that a GPU reaches, or rate='timed' to try it here"
            )
        pace = self.arithmetic / self.rate
        pieces = [pace * piece for piece in self.pieces]
        return share(pieces, replicas or self.replicas, start=pace * self.start)

    @property
    def hours(self) -> float:
        """Hours until the last piece is finished."""
        return self.shared().seconds / 3600

    def to_frame(self, most: int = 1024) -> pd.DataFrame:
        """Hours by number of replicas: 1, 2, 4 and so on, up to `most`.

        Returns:
            Columns `replicas`, `gpus`, `hours`, `gpu_hours`, `idle` and `starting` (shares of the
            replicas' time) and `pieces_each`.
        """
        import pandas as pd

        rows = []
        for replicas in (2**power for power in range(most.bit_length())):
            found = self.shared(replicas)
            gpus, spent = replicas * self.gpus_each, replicas * found.seconds
            rows.append(
                {
                    "replicas": replicas,
                    "gpus": gpus,
                    "hours": found.seconds / 3600,
                    "gpu_hours": gpus * found.seconds / 3600,
                    "idle": found.idle / spent,
                    "starting": found.starting / spent,
                    "pieces_each": len(self.pieces) / replicas,
                }
            )
        return pd.DataFrame(rows)

    def figure(self, most: int = 1024) -> go.Figure:
        """Hours and GPU hours against the number of GPUs, and the share that is idle."""
        return figures.plan_figure(self, most)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__}
        known = self.rate is not None
        return {
            **told,
            "pieces": len(self.pieces),
            "least": len(self.least),
            "forward_passes": round(self.passes, 2),
            "fewest_forward_passes": round(self.fewest_passes, 2),
            "memory": self.memory,
            "replicas": self.replicas,
            "hours": self.hours if known else None,
        }

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {said}" for name, said in self.told().items())

    def told(self) -> Mapping[str, str]:
        """What it says, by what it is about."""
        scan = f"{self.layers} x {self.heads} heads, " if self.measure != "evaluate" else ""
        pieces, passes = f"{len(self.pieces):,}", f"{self.passes:,.0f}"
        if self.least != self.pieces:
            pieces = f"{len(self.least):,} to {pieces}"
            passes = f"{self.fewest_passes:,.0f} to {passes}"
        found = {
            "run": f"{self.measure} of {self.model}: {scan}{self.prompts:,} prompts of "
            f"{self.width} tokens",
            "pieces": pieces,
            "forward passes": f"{passes} of a prompt ({self.start / self.layers / self.width:,.0f} "
            "of them by each replica anew)",
            "memory": f"{readable(self.memory)} a replica: weights {readable(self.weights)}, and "
            f"beside them {readable(self.peak)} of at most {readable(self.budget)}",
        }
        if self.gpus:
            each = "a GPU" if self.gpus_each == 1 else f"{self.gpus_each} GPUs, one busy at a time"
            found["replicas"] = f"{self.replicas}, each of {each}"
            if self.max_rows is not None:
                found["replicas"] += f"; with max_rows={self.max_rows}, for enough pieces"
            if len(self.pieces) < PIECES_EACH * self.replicas > PIECES_EACH:
                found["replicas"] += (
                    f"; {len(self.pieces) / self.replicas:.2g} pieces each are few: of fewer than "
                    f"{PIECES_EACH} more than a tenth of the time may be lost"
                )
        if self.rate is None:
            found["hours"] = "not known without a rate"
        else:
            shared = self.shared()
            spent, hours = self.replicas * shared.seconds, shared.seconds / 3600
            gpus = (
                f" ({hours * self.replicas * self.gpus_each:,.3g} GPU hours)" if self.gpus else ""
            )
            found["hours"] = (
                f"{hours:,.3g}{gpus} at {self.rate:.3g} floating point operations a second; "
                f"{shared.idle / spent:.0%} of it idle, {shared.starting / spent:.0%} starting"
            )
        return found


def plan(
    model: str | Path | PretrainedConfig,
    prompts: Prompts | int,
    *,
    measure: Measure = "ships",
    length: int | None = None,
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    size: int = 3,
    screen: Screen = "off",
    variants: int = 22,
    max_new_tokens: int | None = None,
    dtype: torch.dtype | str = "float32",
    gpus: int = 0,
    memory: int | str | None = None,
    rate: float | Literal["timed"] | None = None,
    run: Run = Run(),
) -> Forecast:
    """Says what a run will take before it runs, from the model's config alone.

    Pieces and passes are the engine's own; memory is that of a trial run of its code on tensors
    without numbers. No weights are loaded, but for `rate="timed"`.

    Args:
        model: a name or a directory, as for `load_model`, of which the config is read, and a
            tokenizer if there is one; or a config of Transformers.
        prompts: what will be run; or how many prompts, of `length` tokens each that share no
            beginning.
        measure: `"ships"`, `"generalized-ships"`, `"sahara"` or `"evaluate"`.
        length: tokens of a prompt in its template, if `prompts` is a number.
        template: as in `ships`, and so `ablation` and `screen`.
        ablation: an ablation or its name.
        size: heads that `sahara` will choose.
        screen: a screened scan ends when it knows enough: its cost is given as two ends.
        variants: of the model that `evaluate` asks: itself, with heads ablated, and 20 controls.
        max_new_tokens: of an answer of `evaluate`, every one of which is taken to be so long.
        dtype: of the weights.
        gpus: how many GPUs there are; 0: none, and the run is on this machine's CPU.
        memory: of each GPU, such as `"80GiB"`.
        rate: floating point operations a second that a GPU reaches in such runs, of which a token
            takes two in each weight of each layer (attention between tokens comes on top, and is
            not counted). `"timed"`: that of a short scan with the model, on this machine.
        run: how it will run: `max_bytes` and `max_rows`.

    Returns:
        A forecast, with `to_frame` and `figure` for other numbers of GPUs.

    Raises:
        SafeheadError: if the model or prompts cannot be used, or do not fit into memory.

    Example:
        >>> forecast = sh.plan("demo", 64, length=9)
        >>> len(forecast.pieces)
        4
    """
    check_run(run, keeping_nothing="plan")
    if measure not in get_args(Measure):
        names = ", ".join(map(repr, get_args(Measure)))
        raise SafeheadError(f"measure={measure!r} is not known: use {names}")
    name = model if isinstance(model, str | Path) else model.name_or_path or type(model).__name__
    precision, resolved = parse_dtype(dtype), resolve_ablation(ablation)
    found, screening = sketch(model, precision), resolve_screen(screen)
    config = found.cfg
    batch = _batch(found, prompts, template, length)
    count, width = batch.tokens.shape
    weights = sum(each.nbytes for each in (*found.parameters(), *found.buffers()))
    beside, device, gpus_each = _beside(measure, screening, config), torch.device("cpu"), 1
    if gpus:
        device = torch.device("cuda")
        gpus_each, run = _fitted(found, batch, beside, weights, gpus, memory, run)
    config.n_devices = gpus_each  # over several, whole layers run
    cut = make_plan(found, batch, resolved, run, beside, device)
    replicas = max(1, gpus // gpus_each)
    fine = max(1, config.n_layers * config.n_heads // (PIECES_EACH * replicas)) * count
    if replicas > 1 and run.max_rows is None and cut.part == count and fine < cut.piece * count:
        run = replace(run, max_rows=fine)
        cut = make_plan(found, batch, resolved, run, beside, device)
    config.n_devices, config.device = 1, "meta"
    batch = replace(batch, tokens=batch.tokens.to("meta"), mask=batch.mask.to("meta"))
    with LiveBytes():
        around = resolved.prepare(found, batch).passes * width * config.n_layers
    if measure == "evaluate":
        decoding = Decoding(max_new_tokens).fitted(room_behind(found, batch))
        rows = fitting_rows(found, batch, decoding, run)
        peak = min(rows, variants * count) * text_bytes(config, width, decoding.steps)
        start, pieces = _answers(config.n_layers, count, width, decoding.steps, variants, rows)
        least = pieces
    else:
        steps = size if measure == "sahara" else 1
        whole = [config.n_heads] * config.n_layers
        start = start_cost(cut, whole, count, width, steps)
        if screening is None:
            pieces = [
                cost
                for step in range(steps)
                for cost in piece_costs(cut, _without(whole, step), count, width)
            ]
            least = pieces
        else:
            probes = beside.probes - (1 if measure == "ships" else 0)
            least, pieces = _screened(cut, whole, count, width, screening, probes, measure, steps)
        quiet = replace(run, progress=False, run_dir=None)
        tried = found if cut.keep or cut.prefix else shortened(found)
        search = Search(tried, batch, resolved, quiet, cut, Passes(cut.rows))
        peak = trial_peak(search, partial(_measure, measure), screening, gpus == 0)
    arithmetic = 2 * _active_weights(found) / config.n_layers
    if rate == "timed":
        if isinstance(model, PretrainedConfig):
            raise SafeheadError("rate='timed' loads the model: give its name or directory")
        loaded = load_model(model, dtype=precision)
        rate = arithmetic * _token_layers_a_second(loaded, prompts, template, resolved, cut, run)
    return Forecast(
        model=str(name),
        measure=measure,
        layers=config.n_layers,
        heads=config.n_heads,
        prompts=count,
        width=width,
        pieces=tuple(pieces),
        least=tuple(least),
        start=start + around,
        weights=weights,
        peak=peak,
        budget=cut.budget,
        gpus=gpus,
        gpus_each=gpus_each,
        arithmetic=arithmetic,
        rate=rate,
        max_rows=run.max_rows,
    )


def _batch(
    model: Model, prompts: Prompts | int, template: Template, length: int | None
) -> PromptBatch:
    """The prompts on the CPU, where what they share can be told."""
    if not isinstance(prompts, int):
        if model.tokenizer is None:
            raise SafeheadError(
                "no tokenizer was found to read prompts with: give how many there are, and "
                "length=, the tokens of the longest in its template"
            )
        model.cfg.device = "cpu"
        return encode(model, prompts, template)
    if prompts < 1 or length is None or not 1 <= length <= model.cfg.n_ctx:
        raise SafeheadError(
            f"{prompts} prompts with length={length}: give one prompt or more, of 1 to "
            f"{model.cfg.n_ctx} tokens each"
        )
    tokens = (torch.arange(prompts) % 2)[:, None].expand(-1, length).contiguous()
    return PromptBatch(("",) * prompts, "direct", tokens, torch.ones_like(tokens))


def _beside(measure: Measure, screening: Screening | None, config: Any) -> Beside:
    if measure == "evaluate":
        return Beside()
    if measure == "ships":
        return Divergence.beside(screening, config)
    return Rotation.beside(1, "left", screening, config)


def _measure(measure: Measure, search: Search) -> ScreeningMeasure:
    if measure == "ships":
        return Divergence(search.model, search.original, search.passes, search.plan.budget)
    states = search.original
    original = subspace(states, 1, False)
    return Rotation(search.model, 1, False, "final_norm", states, original, search.plan.budget)


def _fitted(
    model: Model,
    batch: PromptBatch,
    beside: Beside,
    weights: int,
    gpus: int,
    memory: int | str | None,
    run: Run,
) -> tuple[int, Run]:
    """The fewest GPUs that hold a replica, and the run with what they have room for."""
    if memory is None:
        raise SafeheadError(f"gpus={gpus} without memory=: say how much each has, such as '80GiB'")
    least = Needs.of(model.cfg, *batch.tokens.shape).least(beside)
    for number in range(1, gpus + 1):
        budget = int(GPU_SHARE * (number * parse_bytes(memory) - weights))
        if budget >= least:
            return number, replace(run, max_bytes=run.max_bytes or budget)
    raise SafeheadError(
        f"the model does not fit: weights take {readable(weights)}, and a scan at least "
        f"{readable(least)} more, of which {gpus} GPUs of {memory} lack some: give more GPUs, or "
        "another dtype"
    )


def _without(heads: Sequence[int], count: int) -> list[int]:
    """Heads in each layer when some were chosen, each taken to be of another layer."""
    return [number - (layer < count) for layer, number in enumerate(heads)]


def _screened(
    cut: Plan,
    heads: Sequence[int],
    prompts: int,
    width: int,
    screening: Screening,
    probes: int,
    measure: Measure,
    steps: int,
) -> tuple[list[int], list[int]]:
    """Pieces of the shortest screened scan, and of the longest, by a separable ablation."""
    layers, every = len(heads), sum(heads)
    limits = screening.limits(1 if measure == "sahara" else TOP, every)
    few = len(range(0, prompts, -(-prompts // ON_THE_WAY)))
    screen = screen_cost(cut, layers, prompts, width, probes, screening.points, few)
    low = min(every, limits.first + screening.audit)
    high = min(every, limits.budget + screening.audit + screening.blocks)
    runs = min((1 + HALVES) * screening.blocks, 2 * (every - low))
    a_pass = start_cost(replace(cut, keep=True), heads, prompts, width)
    # Where streams are not kept, they are run again each time that heads are scored.
    again = [a_pass] * (0 if cut.keep else high - low)
    listed = [
        piece_costs(
            cut,
            [count * (at + 1) // layers - count * at // layers for at in range(layers)],
            prompts,
            width,
        )
        for count in (low, high)
    ]
    least, most = [screen, *listed[0]], [screen, *listed[1], *[a_pass] * runs, *again]
    return least * steps, most * steps


def _answers(
    layers: int, prompts: int, width: int, steps: int, variants: int, rows: int
) -> tuple[int, list[int]]:
    """What each replica runs, and each piece: texts, then the next token's divergence."""
    slices = even_slices(variants * prompts, rows)
    sizes = [some.stop - some.start for some in slices]
    texts = [size * (width + steps - 1) * layers for size in sizes]
    return prompts * width * layers, [*texts, *(size * width * layers for size in sizes)]


def _active_weights(model: Model) -> float:
    """Weights of all layers that a token meets: of experts, those that are chosen for it."""
    experts = getattr(model.cfg, "num_experts", None) or 1
    share = (getattr(model.cfg, "experts_per_token", None) or 1) / experts
    named = model.blocks.named_parameters()
    return float(sum(each.numel() * (share if "experts" in name else 1) for name, each in named))


def _token_layers_a_second(
    model: Model,
    prompts: Prompts | int,
    template: Template,
    ablation: Ablation,
    cut: Plan,
    run: Run,
) -> float:
    """As a short scan runs: a piece in the middle layer, the second time."""
    if isinstance(prompts, int):
        raise SafeheadError("rate='timed' runs the prompts: give them, and not how many there are")
    layer, count = model.cfg.n_layers // 2, min(cut.piece, model.cfg.n_heads)
    some = [Head(layer, number) for number in range(count)]
    quiet = replace(run, progress=False)
    for _ in range(2):
        scores = ships(
            model, prompts, template=template, ablation=ablation, candidates=some, run=quiet
        )
    found = scores.provenance
    each = model.cfg.n_layers * encode(model, prompts, template).tokens.shape[1]
    return found.forward_passes * each / found.seconds

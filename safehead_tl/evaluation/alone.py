"""What breaks safety alone: attack success with every head ablated by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.answered import Answered, Said
from safehead_tl.generation import METRICS, Decoding, Judges, Metric, Questioning, Responses
from safehead_tl.heads import Head, HeadLike, HeadsLike, parse_heads
from safehead_tl.judges import Judge
from safehead_tl.models import Model, check_model, said_once, single_thread_if_tiny
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import HeadScores, Provenance, Rate, figures, holm, spearman
from safehead_tl.scan import Run, anywhere

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class AsrMap(Answered):
    """How a model answers with each head ablated alone (paper Fig. 4b).

    Attributes:
        heads: the heads that were ablated, one at a time.
        responses: what the model answers: unablated, then with each of the heads ablated.
        provenance: what it was computed from.
    """

    heads: tuple[Head, ...]
    responses: Responses
    provenance: Provenance

    @property
    def unablated_asr(self) -> Rate:
        """Attack success rate of the model as it is."""
        return self.responses.rate("asr", 0)

    def rate(self, head: HeadLike, metric: Metric = "asr") -> Rate:
        """The share of responses with one head ablated, with its interval over prompts.

        Raises:
            SafeheadError: if this head was not ablated.
        """
        chosen = Head.parse(head)
        if chosen not in self.heads:
            raise SafeheadError(f"{chosen} was not ablated: it is not among the candidates")
        return self.responses.rate(metric, 1 + self.heads.index(chosen))

    def scores(self, metric: Metric = "asr") -> HeadScores:
        """The shares, layer by head, as scores: to draw, rank, and compare with `overlap`.

        Args:
            metric: `"asr"`, `"coherent_asr"`, `"refusal"` or `"coherent"`.

        Raises:
            SafeheadError: if `metric` is not known.
        """
        if metric not in METRICS:
            raise SafeheadError(f"metric={metric!r}: use {', '.join(map(repr, METRICS))}")
        shares = self.responses.outcomes(metric).double().mean(2)
        return self._as_scores(metric, "rate", shares[1:])

    @property
    def ships(self) -> HeadScores:
        """Ships of the same heads on the same prompts, which come with the answers."""
        return self._as_scores("ships", "nats", self.responses.divergence[1:].double())

    def _as_scores(
        self, measure: str, unit: str, found: Float[Tensor, "head prompt"]
    ) -> HeadScores:
        model = self.provenance.model
        values = torch.full(
            (found.shape[1], model["n_layers"], model["n_heads"]), torch.nan, dtype=torch.double
        )
        layers, heads = zip(*self.heads, strict=True)
        values[:, list(layers), list(heads)] = found.T
        return HeadScores(measure, unit, values.mean(0), values, (), self.provenance)

    def correlation(self, scores: HeadScores | None = None, metric: Metric = "asr") -> float:
        """Spearman's rank correlation of the shares with scores, over heads that both have.

        Args:
            scores: a scan of the same model; by default Ships on the same prompts.
            metric: of which shares.

        Returns:
            Between -1 and 1; NaN if all heads have the same share or score.

        Raises:
            SafeheadError: if the scores are of a model with other layers and heads, or fewer than
                two heads have both.
        """
        scan = self.ships if scores is None else scores
        shares = self.scores(metric).values
        if scan.values.shape != shares.shape:
            raise SafeheadError(
                f"the scores are of {tuple(scan.values.shape)} layers and heads, and the map of "
                f"{tuple(shares.shape)}: give a scan of the same model"
            )
        both = ~(scan.best_known.isnan() | shares.isnan())
        if int(both.sum()) < 2:
            raise SafeheadError("fewer than two heads have a share and a score: scan more of them")
        return spearman(shares[both], scan.best_known[both].double())

    def notes(self) -> list[str]:
        """How to read the map, a sentence each."""
        return [
            f"{len(self.heads)} heads, each ablated alone; unablated, attack success is "
            f"{self.unablated_asr}.",
            "An interval is of its head by itself: the highest of many is high by chance too.",
        ]

    def to_frame(self) -> pd.DataFrame:
        """One head a row, the highest attack success first.

        Returns:
            Columns `layer, head, name, kv_group, asr, rank, low, high, coherent_asr, refusal,
            coherent, ships, p_unablated, holm_unablated`; `low` and `high` are of `asr`, and the
            last two an exact paired test of it against the unablated model, and the same corrected
            for the number of heads (Holm).
        """
        table = self.scores().to_frame().rename(columns={"score": "asr"})
        heads = list(map(Head, table["layer"], table["head"]))
        table["low"], table["high"] = zip(
            *(self.rate(head).interval for head in heads), strict=True
        )
        for metric in ("coherent_asr", "refusal", "coherent"):
            table[metric] = [self.rate(head, metric).share for head in heads]
        ships = self.ships
        table["ships"] = [ships[head] for head in heads]
        ps = [self.responses.differs("asr", 1 + self.heads.index(head)) for head in heads]
        table["p_unablated"], table["holm_unablated"] = ps, holm(ps)
        return table

    @override
    def _said(self) -> Iterator[Said]:
        names = ["unablated", *(f"ablated: {head}" for head in self.heads)]
        yield Said("harmful", self.responses, names, [(), *((head,) for head in self.heads)])

    def __repr__(self) -> str:
        best = ", ".join(f"{head} {self.rate(head)}" for head, _ in self.scores().top(3))
        return f"<AsrMap: {len(self.heads)} heads, highest: {best}; none {self.unablated_asr}>"

    def heatmap(self, metric: Metric = "asr", **told: Any) -> go.Figure:
        """Draws the shares, layer by head; hovering a cell shows its 95 % Wilson interval.

        Args:
            metric: as in `scores`.
            told: as in `HeadScores.heatmap`, such as `marked`.
        """
        return self.scores(metric).heatmap(**told)

    def beside(
        self, scores: HeadScores | None = None, metric: Metric = "asr", **told: Any
    ) -> go.Figure:
        """Draws the shares next to scores, with their rank correlation.

        Args:
            scores: a scan of the same model; by default Ships on the same prompts.
            metric: as in `scores`.
            told: as in `heatmaps`, such as `marked`.

        Raises:
            SafeheadError: as `correlation`.
        """
        rank = f"rank correlation {self.correlation(scores, metric):.2f}"
        shown = {METRICS[metric]: self.scores(metric), rank: scores or self.ships}
        return figures.heatmaps(shown, **told)

    def to_dict(self) -> dict[str, Any]:
        """Shares, tests and provenance as plain values; no prompts and no responses."""
        correlation = self.correlation() if len(self.heads) > 1 else math.nan
        return {
            "heads": self.to_frame().to_dict("records"),
            "unablated": {metric: self.responses.rate(metric, 0).share for metric in METRICS},
            "spearman_with_ships": None if math.isnan(correlation) else correlation,
            "notes": self.notes(),
            "provenance": self.provenance.to_dict(),
        }

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # Answers of all heads are more than a header of safetensors holds.
        texts = bytearray(json.dumps(self.responses.header()).encode())
        tensors = {"texts": torch.frombuffer(texts, dtype=torch.uint8)}
        header = {"heads": self.heads, "provenance": self.provenance.to_dict()}
        return tensors | self.responses.tensors("harmful"), header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> AsrMap:
        told = json.loads(tensors["texts"].numpy().tobytes())
        return cls(
            heads=tuple(Head(*head) for head in header["heads"]),
            responses=Responses.restored("harmful", tensors, told),
            provenance=Provenance(**header["provenance"]),
        )


@said_once()
@anywhere
def asr_map(
    model: Model,
    prompts: Prompts,
    *,
    candidates: HeadsLike | None = None,
    ablation: str | Ablation = "undifferentiated",
    template: Template = "auto",
    judge: str | Judge = "keyword",
    refusal: str | Judge = "refusal-prefix",
    coherence: str | Judge = "coherence",
    max_new_tokens: int | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    run: Run = Run(),
) -> AsrMap:
    """Attack success of every head ablated alone (paper Fig. 4b).

    It costs one generation of each prompt for every head: layers x heads x prompts texts. With
    1,024 heads, 100 prompts and 128 new tokens these are 13 million tokens. So give a few
    `candidates` first, such as `scores.top(50)`, short answers, and a `run_dir`. Texts of several
    heads are generated in one batch.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: harmful prompts, without template: texts, or a source that `load_prompts` reads.
        candidates: the heads to ablate; by default all.
        ablation: as in `evaluate`, and so the following.
        template: the text around each prompt.
        judge: decides what an attack success is.
        refusal: decides what opens with a refusal.
        coherence: decides what is readable text.
        max_new_tokens: length of a response.
        top_k: draw each token from so many.
        temperature: for `top_k`.
        samples: responses for each prompt.
        seed: of the draws of tokens.
        run: how it runs; with a `run_dir` a stopped map goes on where it was.

    Returns:
        The shares of every head with all responses, and Ships of the same heads.

    Raises:
        SafeheadError: as `evaluate`; or if there is no candidate.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=8)
        >>> told = {"candidates": ["L1H3", "L2H6", "L0H0"], "max_new_tokens": 32}
        >>> found = sh.asr_map(model, prompts, **told)
        >>> [(str(head), share) for head, share in found.scores().top(1)]
        [('L2H6', 0.875)]
    """
    check_model(model)
    size = model.cfg.n_layers, model.cfg.n_heads
    every = [Head(layer, head) for layer in range(size[0]) for head in range(size[1])]
    heads = parse_heads(every if candidates is None else candidates, *size)
    if not heads:
        raise SafeheadError("candidates is empty: give heads to ablate one by one, or leave it out")
    settings: dict[str, Any] = {"measure": "asr_map", "candidates": [str(head) for head in heads]}
    with single_thread_if_tiny(model):
        asking = Questioning.start(
            model,
            {"harmful": prompts},
            template,
            ablation,
            Decoding(max_new_tokens, top_k, temperature, samples, seed),
            Judges.resolved(judge, refusal, coherence),
            run=run,
            identity=settings,
        )
        responses = asking.ask("harmful", [(), *((head,) for head in heads)])
        settings["unablated"] = {name: str(responses.rate(name, 0)) for name in METRICS}
    return AsrMap(heads, responses, asking.provenance("harmful", settings))

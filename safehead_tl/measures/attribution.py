"""Direct attribution: what each head writes along a direction, at the last token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.measures.direction import RefusalDirection, digest
from safehead_tl.measures.odds import LogOdds
from safehead_tl.measures.openings import Openings
from safehead_tl.models import Model, gradient_with_norm_held, require_finite
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import HeadScores, Saved
from safehead_tl.scan import Beside, Run, Search, anywhere, contributions


@dataclass(frozen=True, eq=False)
class DirectAttribution(Saved):
    """What adds up to the last state along a direction: heads, and everything else.

    Attributes:
        heads: each head's contribution; its figures and tables are those of all scores.
        biases: of each layer's attention: its output bias, and that of a norm behind it.
        mlps: of each layer's MLP, with its biases.
        embedding: of the embedding.
        whole: the last state itself along the direction. In float32 `heads.per_prompt`, summed, and
            `rest` add up to it to about 1e-6 of what is added; in half precision the stream is
            rounded at each layer, and they differ by that.
    """

    heads: HeadScores
    biases: Float[Tensor, "prompt layer"]
    mlps: Float[Tensor, "prompt layer"]
    embedding: Float[Tensor, " prompt"]
    whole: Float[Tensor, " prompt"]

    @property
    def rest(self) -> Float[Tensor, " prompt"]:
        """What is not of heads: embedding, MLPs and biases."""
        return self.embedding + self.mlps.sum(1) + self.biases.sum(1)

    def __repr__(self) -> str:
        best = ", ".join(f"{head} {score:.4g}" for head, score in self.heads.top(3))
        return (
            f"<DirectAttribution: {self.whole.mean():.4g} {self.heads.unit}, of which "
            f"{self.rest.mean():.4g} not of heads; highest: {best}>"
        )

    def to_frame(self) -> pd.DataFrame:
        """All parts, means over prompts, the largest first: `part, layer, contribution`."""
        layers = range(self.mlps.shape[1])
        rows: list[tuple[str, int | None, float]]
        rows = [(str(head), head.layer, score) for head, score in self.heads]
        rows += [("embedding", None, float(self.embedding.mean()))]
        for name, values in (("MLP", self.mlps), ("biases", self.biases)):
            means = values.mean(0).tolist()
            rows += [(f"{name} {layer}", layer, means[layer]) for layer in layers]
        rows.sort(key=lambda row: -abs(row[2]))
        table = pd.DataFrame(rows, columns=["part", "layer", "contribution"])
        return table.astype({"layer": "Int64"})

    def to_dict(self) -> dict[str, Any]:
        """As plain values, means over prompts."""
        return {
            **self.heads.to_dict(),
            "mlps": self.mlps.mean(0).tolist(),
            "biases": self.biases.mean(0).tolist(),
            "embedding": float(self.embedding.mean()),
            "whole": float(self.whole.mean()),
        }

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, header = self.heads._to_file()
        others = {name: getattr(self, name) for name in ("biases", "mlps", "embedding", "whole")}
        return {**tensors, **others}, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> DirectAttribution:
        others = {name: tensors[name] for name in ("biases", "mlps", "embedding", "whole")}
        return cls(HeadScores._from_file(tensors, header), **others)


@anywhere
def direct_attribution(
    model: Model,
    prompts: Prompts,
    direction: RefusalDirection | Openings | Float[Tensor, " d_model"],
    *,
    template: Template = "auto",
    run: Run = Run(),
) -> DirectAttribution:
    """Takes apart what lies along a direction in the last token's state, by who wrote it.

    A head writes z W_O into the residual stream. Nothing is ablated, and what later layers make of
    it does not count: a head that acts through others has next to nothing here.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: as in `ships`.
        direction: `refusal_direction(...)` or a vector, of which the direction alone counts. Or
            `Openings`: the direction in which refusal log-odds grow fastest at each prompt's own
            last state, its final norm's scale held (direct logit attribution; Elhage et al. 2021).
        template: as in `ships`.
        run: how it runs.

    Returns:
        Contributions with a sign, for all layers, in units of the residual stream; with `Openings`
        in logits. Of each prompt and averaged. Costs one pass of each prompt.

    Raises:
        SafeheadError: as `ships`; for a direction of another size or of no length, openings that
            the model does not have, or an architecture that writes into the stream by more than
            attention and MLP.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> openings = sh.Openings.of_answers(model, "demo/harmful", "demo/benign")
        >>> found = sh.direct_attribution(model, prompts, openings)
        >>> parts = found.heads.per_prompt.sum((1, 2)) + found.rest
        >>> bool(torch.allclose(parts, found.whole, rtol=1e-4))
        True
    """
    logits = isinstance(direction, Openings)
    search = Search.start(model, prompts, template, "zero", run, _beside)
    told, unit = _told(model, direction)
    scored = search.candidates(None)
    settings = {"direction": told}
    measure = "direct_logit_attribution" if logits else "direct_attribution"
    search.open_directory(measure, settings, scored)
    linear = search.linearisation(())

    def directions(states: Tensor, some: range) -> Tensor:
        named = [search.batch.prompts[each] for each in some]
        require_finite(model, states, named, "the last states")
        if isinstance(direction, Openings):
            return gradient_with_norm_held(model, states, LogOdds(model, direction, states).of)
        return unit.to(states).expand_as(states)

    compute = partial(contributions, linear, directions=directions)
    found = search.by_prompts("direct", compute, measure.replace("_", " "))
    layers, heads = search.shape
    per_prompt, biases, mlps, ends = found.split([layers * heads, layers, layers, 2], 1)
    per_prompt = per_prompt.unflatten(1, search.shape)
    scores = HeadScores(
        measure=measure,
        unit="logits" if logits else "residual",
        values=per_prompt.mean(0),
        per_prompt=per_prompt,
        given=(),
        provenance=search.provenance(settings),
        signed=True,
    )
    return DirectAttribution(scores, biases, mlps, ends[:, 0], ends[:, 1])


def _beside(config: Any) -> Beside:
    """What it takes: contributions, and a gradient."""
    return Beside(0, 8 * config.n_layers * (config.n_heads + 2), 1)


def _told(
    model: Model, direction: RefusalDirection | Openings | Tensor
) -> tuple[dict[str, Any], Tensor]:
    """What a direction is, for a result's provenance; and the unit vector, of one that is given."""
    if isinstance(direction, Openings):
        return {"openings": direction.describe(model)}, torch.zeros(0)
    vector = direction.vector if isinstance(direction, RefusalDirection) else direction
    size = (model.cfg.d_model,)
    if not isinstance(vector, Tensor) or vector.shape != size:
        raise SafeheadError(
            f"direction={direction!r}: give refusal_direction(...), Openings, or a vector of the "
            f"model's {model.cfg.d_model} numbers"
        )
    length = vector.double().norm()
    if not (length.isfinite() and length > 0):
        raise SafeheadError(f"the direction's length is {float(length)}: give another vector")
    told = direction.describe() if isinstance(direction, RefusalDirection) else digest(vector)
    return told, vector.double() / length

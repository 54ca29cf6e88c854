"""How few heads carry the refusals: attack success as heads are ablated one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.answered import Answered, Said
from safehead_tl.evaluation.clusters import Clusters, numbered
from safehead_tl.evaluation.controls import draw_controls, drawn_words, in_order
from safehead_tl.generation import METRICS, Decoding, Judges, Metric, Questioning, Responses
from safehead_tl.heads import Group, Head, HeadsLike, parse_heads
from safehead_tl.judges import Judge
from safehead_tl.models import Model, check_model, single_thread_if_tiny
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import Provenance, Rate, figures, rise_interval
from safehead_tl.scan import Run, anywhere

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Concentration(Answered):
    """Attack success against the number of ablated heads, along several orders of heads.

    Attributes:
        orders: heads in the order in which they are ablated, by the order's name.
        random_orders: the random orders they are compared with, each like one of `orders` in which
            layers its heads lie.
        responses: what the model answers: unablated, then with the first head of each order, with
            its first two, and so on.
        provenance: what it was computed from.
    """

    orders: Mapping[str, tuple[Head, ...]]
    random_orders: tuple[tuple[Head, ...], ...]
    responses: Responses
    provenance: Provenance

    @property
    def size(self) -> int:
        """How many heads are ablated at most."""
        return len(next(iter(self.orders.values())))

    def curve(self, order: str, metric: Metric = "coherent_asr") -> list[Rate]:
        """The share of responses with no head of an order ablated, with one, with two, ...

        Raises:
            SafeheadError: if there is no such order.
        """
        return [self.responses.rate(metric, variant) for variant in self._variants(order)]

    def random_curves(self, metric: Metric = "coherent_asr") -> list[list[float]]:
        """The same shares along each random order."""
        first = 1 + len(self.orders) * self.size
        starts = range(first, first + len(self.random_orders) * self.size, self.size)
        return [
            [
                self.responses.rate(metric, variant).share
                for variant in (0, *range(start, start + self.size))
            ]
            for start in starts
        ]

    def area(
        self, order: str, metric: Metric = "coherent_asr"
    ) -> tuple[float, tuple[float, float]]:
        """Safety concentration: the mean share over 1 to `size` heads ablated, above unablated.

        1: the first head ablated turns every answer. 0: ablating all of them turns none. Negative
        where ablation lowers the share.

        Returns:
            The area, and its 95 % interval over prompts: of the difference of two shares, each with
            its Wilson interval (`rise_interval`).
        """
        variants = self._variants(order)
        shares = self.responses.outcomes(metric).double().mean(2)
        before, after = (
            Rate(some.sum().item(), shares.shape[1], self.responses.independent)
            for some in (shares[0], shares[variants[1:]].mean(0))
        )
        return after.share - before.share, rise_interval(before, after)

    def random_areas(self, metric: Metric = "coherent_asr") -> list[float]:
        """The same along each random order."""
        return [sum(curve[1:]) / self.size - curve[0] for curve in self.random_curves(metric)]

    def _variants(self, order: str) -> list[int]:
        if order not in self.orders:
            raise SafeheadError(f"no order {order!r}: there are {', '.join(self.orders)}")
        start = 1 + list(self.orders).index(order) * self.size
        return [0, *range(start, start + self.size)]

    def notes(self) -> list[str]:
        """In which way the random orders are like those given, and as how many prompts count."""
        notes = [
            f"Random orders like {name}: {drawn_words(told)}, place by place."
            for name, told in self.provenance.settings["matching"].items()
            if told["drawn"] or not told["possible"]
        ]
        return notes + self.responses.notes("harmful")

    def to_frame(self) -> pd.DataFrame:
        """Every point of every curve: `order, ablated, heads, metric, share, low, high, n`."""
        rows = []
        for order, heads in self.orders.items():
            for metric in METRICS:
                for count, rate in enumerate(self.curve(order, metric)):
                    rows.append(
                        {
                            "order": order,
                            "ablated": count,
                            "heads": " ".join(map(str, heads[:count])),
                            "metric": metric,
                            "share": rate.share,
                            "low": rate.interval[0],
                            "high": rate.interval[1],
                            "n": rate.total,
                        }
                    )
        return pd.DataFrame(rows)

    @override
    def _said(self) -> Iterator[Said]:
        drawn = {f"random {number}": one for number, one in enumerate(self.random_orders, 1)}
        groups: dict[str, Group] = {"unablated": ()}
        for order, heads in {**self.orders, **drawn}.items():
            groups |= {f"{order}, first {n}": heads[:n] for n in range(1, self.size + 1)}
        yield Said("harmful", self.responses, [*groups], [*groups.values()])

    def __repr__(self) -> str:
        areas = ", ".join(f"{order} {self.area(order)[0]:.2f}" for order in self.orders)
        return f"<Concentration over {self.size} heads: {areas}>"

    def to_dict(self) -> dict[str, Any]:
        """Curves, areas and provenance as plain values; no prompts and no responses."""
        orders = {}
        for order, heads in self.orders.items():
            area, interval = self.area(order)
            curves = {
                metric: [rate.share for rate in self.curve(order, metric)] for metric in METRICS
            }
            orders[order] = {
                "heads": [str(head) for head in heads],
                "area": area,
                "area_interval": list(interval),
                "curves": curves,
            }
        return {
            "orders": orders,
            "random": {
                "heads": [[str(head) for head in order] for order in self.random_orders],
                "areas": self.random_areas(),
                "coherent_asr": self.random_curves(),
            },
            "notes": self.notes(),
            "provenance": self.provenance.to_dict(),
        }

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        header = {
            "orders": self.orders,
            "random_orders": self.random_orders,
            "responses": self.responses.header(),
            "provenance": self.provenance.to_dict(),
        }
        return self.responses.tensors("harmful"), header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Concentration:
        return cls(
            orders={name: _heads(order) for name, order in header["orders"].items()},
            random_orders=tuple(map(_heads, header["random_orders"])),
            responses=Responses.restored("harmful", tensors, header["responses"]),
            provenance=Provenance(**header["provenance"]),
        )

    def figure(self, metric: Metric = "coherent_asr") -> go.Figure:
        """The curves, with the random orders' range behind them."""
        return figures.concentration_figure(self, metric)


def _heads(pairs: Sequence[Sequence[int]]) -> tuple[Head, ...]:
    return tuple(Head(layer, head) for layer, head in pairs)


@anywhere
def concentration(
    model: Model,
    prompts: Prompts,
    orders: Mapping[str, HeadsLike],
    *,
    size: int | None = None,
    random_orders: int = 20,
    clusters: Clusters = None,
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
) -> Concentration:
    """Ablates heads one after the other, and watches attack success rise (paper Fig. 4a).

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: harmful prompts, without template: texts, or a source that `load_prompts` reads.
        orders: heads, the first to be ablated first, by a name: such as
            `{"Sahara": group.heads, "Ships": scores.top(3)}`.
        size: how many heads to ablate at most; by default as many as the shortest order has.
        random_orders: how many random orders to compare with. Each is like one of `orders`, in
            turn: place by place it has a head of the same layer that is in no order; or of the same
            block of layers, where layers hold too few, as in `evaluate`.
        clusters: prompts that are alike, as in `evaluate`.
        ablation: as in `evaluate`, and so the following.
        template: the text around each prompt.
        judge: decides what an attack success is.
        refusal: decides what opens with a refusal.
        coherence: decides what is readable text.
        max_new_tokens: length of a response.
        top_k: draw each token from so many.
        temperature: for `top_k`.
        samples: responses for each prompt.
        seed: of all draws, those of the random orders too.
        run: how it runs.

    Returns:
        Curves along each order, and the area under each: the safety concentration. Costs one
        generation of each prompt for each order and number of heads.

    Raises:
        SafeheadError: as `evaluate`; or if there is no order, or one is shorter than `size`.

    Example:
        >>> model = sh.load_model("demo")
        >>> prompts = sh.load_prompts("demo/harmful", split="test", limit=8)
        >>> told = {"max_new_tokens": 32, "random_orders": 2}
        >>> found = sh.concentration(model, prompts, {"planted": ["L2H6", "L1H3"]}, **told)
        >>> [rate.share for rate in found.curve("planted")][::2]  # with none ablated, with both
        [0.0, 1.0]
    """
    check_model(model)
    layers, width = model.cfg.n_layers, model.cfg.n_heads
    if not isinstance(orders, Mapping):
        raise SafeheadError("give orders by name, such as {'Ships': scores.top(3)}")
    parsed = {name: parse_heads(heads, layers, width) for name, heads in orders.items()}
    if not parsed:
        raise SafeheadError("orders is empty: give such as {'Sahara': group.heads}")
    shortest = min(map(len, parsed.values()))
    if size is None:
        size = shortest
    if not (isinstance(random_orders, int) and random_orders >= 0):
        raise SafeheadError(f"random_orders={random_orders!r}: give a number, or 0")
    if not (isinstance(size, int) and 1 <= size <= shortest):
        raise SafeheadError(
            f"size={size}: the shortest order has {shortest} heads; give 1 to as many"
        )
    told = {name: heads[:size] for name, heads in parsed.items()}
    given, drawn, matching = {head for heads in told.values() for head in heads}, [], {}
    for number, (name, heads) in enumerate(told.items()):
        draws = len(range(number, random_orders, len(told)))
        like = draw_controls(heads, layers, width, draws, seed + number, given)
        matching[name] = like.describe()
        drawn += [
            in_order(group, heads, like.layers, seed + place)
            for place, group in enumerate(like.sets)
        ]
    variants = [(), *(order[:k] for order in (*told.values(), *drawn) for k in range(1, size + 1))]
    settings = {
        "measure": "concentration",
        "orders": {name: [str(head) for head in heads] for name, heads in told.items()},
        "random_orders": [[str(head) for head in order] for order in drawn],
        "matching": matching,
    }
    with single_thread_if_tiny(model), torch.no_grad():
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
        numbers = numbered(clusters, asking.batches["harmful"].prompts, "harmful")
        responses = replace(asking.ask("harmful", variants), clusters=numbers)
    return Concentration(told, tuple(drawn), responses, asking.provenance("harmful", settings))

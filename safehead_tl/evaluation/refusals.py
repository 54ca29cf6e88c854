"""What a model refuses with heads ablated or amplified: harmful prompts against harmless ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.answered import Answered, Said, plain_rows
from safehead_tl.generation import Decoding, Judges, Questioning, Responses
from safehead_tl.heads import Group, Head, HeadsLike, parse_heads
from safehead_tl.judges import Judge
from safehead_tl.models import Model, check_model, said_once, single_thread_if_tiny
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import Provenance, Rate, figures, holm, paired_p
from safehead_tl.scan import Run, anywhere

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNABLATED = "unablated"

Variants: TypeAlias = Mapping[str, HeadsLike | Mapping[str, Any]]
"""By name: heads, or a dict of `heads` and `ablation` as `evaluate` takes them."""


@dataclass(frozen=True, eq=False)
class RefusalMap(Answered):
    """How often a model refuses harmful and harmless prompts, as it is and with heads ablated.

    Attributes:
        heads: the heads that were ablated or scaled, by the variant's name; `"unablated"` first.
        ablations: what was done to them, likewise, as a provenance says it.
        harmful: the answers to harmful prompts of each variant, likewise.
        harmless: the answers to harmless prompts, likewise.
        provenance: what it was computed from.
    """

    heads: Mapping[str, Group]
    ablations: Mapping[str, Mapping[str, Any]]
    harmful: Mapping[str, Responses]
    harmless: Mapping[str, Responses]
    provenance: Provenance

    def refused(self, name: str) -> tuple[Rate, Rate]:
        """The shares of harmful and of harmless prompts that a variant refuses.

        Raises:
            SafeheadError: if no variant is called so.
        """
        if name not in self.heads:
            raise SafeheadError(f"no variant is called {name!r}: use {', '.join(self.heads)}")
        return self.harmful[name].rate("refusal", 0), self.harmless[name].rate("refusal", 0)

    def to_frame(self) -> pd.DataFrame:
        """One variant a row.

        Returns:
            Columns `variant, heads, ablation`, then `harmful, harmful_low, harmful_high,
            harmful_p, harmful_holm` and the same for `harmless`: the share that is refused, its
            95 % Wilson interval, and an exact paired test against the unablated model, corrected
            for all of the table (Holm).
        """
        rows: list[dict[str, Any]] = []
        for name, heads in self.heads.items():
            row = {
                "variant": name,
                "heads": " ".join(map(str, heads)),
                "ablation": self.ablations[name].get("label", ""),
            }
            for prompts, rate in zip(("harmful", "harmless"), self.refused(name), strict=True):
                low, high = rate.interval
                row |= {prompts: rate.share, f"{prompts}_low": low, f"{prompts}_high": high}
                answers: Mapping[str, Responses] = getattr(self, prompts)
                one, other = (answers[each].refused.sum(2)[0] for each in (UNABLATED, name))
                tested = name != UNABLATED
                row[f"{prompts}_p"] = paired_p(one.tolist(), other.tolist()) if tested else None
            rows.append(row)
        both = ("harmful", "harmless")
        corrected = iter(holm([row[f"{prompts}_p"] for row in rows for prompts in both]))
        for row in rows:
            row |= {f"{prompts}_holm": next(corrected) for prompts in both}
        told = ("", "_low", "_high", "_p", "_holm")
        shares = [f"{prompts}{each}" for prompts in both for each in told]
        return pd.DataFrame(rows, columns=["variant", "heads", "ablation", *shares])

    @override
    def _said(self) -> Iterator[Said]:
        for prompts, answers in (("harmful", self.harmful), ("harmless", self.harmless)):
            for name, found in answers.items():
                yield Said(prompts, found, [name], [self.heads[name]])

    def figure(self) -> go.Figure:
        """The variants in the plane of refused harmful against refused harmless prompts.

        As OR-Bench draws models (Cui et al. 2024, arXiv 2405.20947): the upper left is best.
        """
        return figures.refusal_map_figure(self)

    def __repr__(self) -> str:
        pairs = ((name, *self.refused(name)) for name in self.heads)
        told = [f"{name} {one.share:.2f}, {two.share:.2f}" for name, one, two in pairs]
        return f"<RefusalMap: harmful, harmless refused: {'; '.join(told)}>"

    def to_dict(self) -> dict[str, Any]:
        """Shares, tests and provenance as plain values; no prompts and no answers."""
        return {"variants": plain_rows(self.to_frame()), "provenance": self.provenance.to_dict()}

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        texts = {}
        for number, name in enumerate(self.heads):
            for prompts in ("harmful", "harmless"):
                found: Responses = getattr(self, prompts)[name]
                tensors |= found.tensors(f"{prompts}.{number}")
                texts[f"{prompts}.{number}"] = found.header()
        # Answers of many variants are more than a header of safetensors holds.
        packed = bytearray(json.dumps(texts).encode())
        tensors["texts"] = torch.frombuffer(packed, dtype=torch.uint8)
        header = {
            "heads": self.heads,
            "ablations": self.ablations,
            "provenance": self.provenance.to_dict(),
        }
        return tensors, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> RefusalMap:
        texts = json.loads(tensors["texts"].numpy().tobytes())
        heads = {
            name: tuple(Head(*head) for head in group) for name, group in header["heads"].items()
        }
        harmful, harmless = (
            {
                name: Responses.restored(key, tensors, texts[key])
                for number, name in enumerate(heads)
                for key in [f"{prompts}.{number}"]
            }
            for prompts in ("harmful", "harmless")
        )
        told = Provenance(**header["provenance"])
        return cls(heads, header["ablations"], harmful, harmless, told)


@said_once()
@anywhere
def refusal_map(
    model: Model,
    *,
    harmful: Prompts,
    harmless: Prompts,
    variants: Variants,
    ablation: str | Ablation = "undifferentiated",
    template: Template = "auto",
    judge: str | Judge = "refusal-prefix",
    refusal: str | Judge = "refusal-prefix",
    coherence: str | Judge = "coherence",
    max_new_tokens: int | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    run: Run = Run(),
) -> RefusalMap:
    """How often a model refuses what is harmful, and what only looks so, variant by variant.

    Ablating, amplifying or repairing heads moves both: a model that refuses everything is as far
    from the good corner as one that refuses nothing. Harmless prompts that look harmful say most,
    such as the presets `"xstest"` and `"or-bench-hard"`.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        harmful: prompts to refuse, without template: texts, or a source that `load_prompts` reads.
        harmless: prompts not to refuse, likewise.
        variants: by name, the heads to ablate; or a dict with `heads` and an `ablation` of its own,
            such as `{"heads": ["L1H3"], "ablation": sh.ScalingContribution(epsilon=2.0)}`. The
            model as it is comes with them.
        ablation: of those that name none.
        template: as in `ships`.
        judge: decides what complies, for who reads the answers; it has no part in the map.
        refusal: decides what is refused: what it does not pass.
        coherence: decides what is readable text.
        max_new_tokens: length of an answer.
        top_k: draw each token from so many.
        temperature: for `top_k`.
        samples: answers for each prompt.
        seed: of the draws of tokens.
        run: how it runs; with a `run_dir` a stopped map goes on where it was.

    Returns:
        The shares of all variants with every answer. Costs one generation of each prompt for each
        of them, and for the model as it is.

    Raises:
        SafeheadError: as `evaluate`; or if there is no variant, one is called `"unablated"`, has no
            heads, or something else in its dict.

    Example:
        >>> model = sh.load_model("demo")
        >>> told = {"harmful": sh.load_prompts("demo/harmful", limit=8), "max_new_tokens": 24}
        >>> told["harmless"] = sh.load_prompts("demo/benign", limit=8)
        >>> sh.refusal_map(model, variants={"both off": ["L1H3", "L2H6"]}, **told)
        <RefusalMap: harmful, harmless refused: unablated 1.00, 0.00; both off 0.00, 0.00>
    """
    check_model(model)
    chosen = _chosen(model, variants, ablation)
    said = {name: what.describe() for name, (_, what) in chosen.items()}
    settings: dict[str, Any] = {
        "measure": "refusal_map",
        "variants": {
            name: {"heads": list(map(str, heads)), "ablation": said[name]}
            for name, (heads, _) in chosen.items()
        },
    }
    groups: dict[str, list[str]] = {}
    for name in chosen:
        groups.setdefault(json.dumps(said[name], sort_keys=True, default=str), []).append(name)
    sets = ("harmful", "harmless")
    answers: dict[str, dict[str, Responses]] = {prompts: {} for prompts in sets}
    with single_thread_if_tiny(model):
        asking = Questioning.start(
            model,
            {"harmful": harmful, "harmless": harmless},
            template,
            next(iter(chosen.values()))[1],
            Decoding(max_new_tokens, top_k, temperature, samples, seed),
            Judges.resolved(judge, refusal, coherence),
            run=run,
            identity=settings,
        )
        for number, names in enumerate(groups.values()):
            what = chosen[names[0]][1].prepare(model, asking.batches["harmful"])
            batches = {f"{prompts}-{number}": asking.batches[prompts] for prompts in sets}
            some = replace(asking, batches=batches, ablation=what)
            asked = {name: chosen[name][0] for name in names}
            if number == 0:
                asked = {UNABLATED: (), **asked}
            for prompts in sets:
                found = some.ask(f"{prompts}-{number}", list(asked.values()))
                for variant, name in enumerate(asked):
                    answers[prompts][name] = found.only(variant)
        told = {"harmless": asking.batches["harmless"].describe()}
        provenance = asking.provenance("harmful", {**settings, **told})
    heads = {UNABLATED: (), **{name: each for name, (each, _) in chosen.items()}}
    one, other = ({name: answers[prompts][name] for name in heads} for prompts in sets)
    return RefusalMap(heads, {UNABLATED: {}, **said}, one, other, provenance)


def _chosen(
    model: Model, variants: Variants, ablation: str | Ablation
) -> dict[str, tuple[Group, Ablation]]:
    """Each variant's heads and ablation."""
    if not isinstance(variants, Mapping) or not variants:
        raise SafeheadError("variants: give heads by name, such as {'both off': ['L1H3', 'L2H6']}")
    found = {}
    for name, told in variants.items():
        own: Mapping[str, Any] = told if isinstance(told, Mapping) else {"heads": told}
        if not isinstance(name, str):
            raise SafeheadError(f"a variant is called {name!r}: give a text as its name")
        if name == UNABLATED:
            raise SafeheadError(f"a variant is called {UNABLATED!r}, as the model as it is: rename")
        if other := set(own) - {"heads", "ablation"}:
            raise SafeheadError(
                f"variant {name!r} has {min(other)!r}: give 'heads' and, if it differs, 'ablation'"
            )
        heads = parse_heads(own.get("heads", ()), model.cfg.n_layers, model.cfg.n_heads)
        if not heads:
            raise SafeheadError(f"variant {name!r} has no heads: the model as it is comes with all")
        found[name] = heads, resolve_ablation(own.get("ablation", ablation))
    return found

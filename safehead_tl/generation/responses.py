"""What a model and its variants answer to a set of prompts, and what judges say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safehead_tl.heads import Variant, own_group
from safehead_tl.judges import Verdict
from safehead_tl.prompts import Chat
from safehead_tl.results import LEAST, Rate, paired_p, studentised_interval

Metric: TypeAlias = Literal["asr", "coherent_asr", "refusal", "coherent"]
METRICS: Mapping[Metric, str] = {
    "asr": "attack success",
    "coherent_asr": "coherent attack success",
    "refusal": "refusal",
    "coherent": "coherent text",
}
"""The shares of responses that are reported, and what they are called."""

SHARES: Mapping[str, Mapping[Metric, str]] = {
    "harmful": METRICS,
    "harmless": {**METRICS, "asr": "answered", "coherent_asr": "answered coherently"},
}
"""The same by set of prompts: on harmless ones success is an answer, and no attack."""

Texts: TypeAlias = tuple[tuple[tuple[str, ...], ...], ...]
"""By variant, prompt and sample."""


@dataclass(frozen=True, eq=False)
class Opinion:
    """What one judge says of responses.

    Attributes:
        success: its verdicts.
        reasons: why, by variant, prompt and sample.
        scores: how far each succeeds, from 0 to 1, if it grades.
    """

    success: Bool[Tensor, "variant prompt sample"]
    reasons: Texts
    scores: Float[Tensor, "variant prompt sample"] | None = None

    def only(self, variants: slice) -> Opinion:
        """That of some variants."""
        scores = None if self.scores is None else self.scores[variants]
        return Opinion(self.success[variants], self.reasons[variants], scores)

    @classmethod
    def of(cls, flat: Sequence[Verdict], variants: int, prompts: int, samples: int) -> Opinion:
        """From a flat list of verdicts by variant, prompt and sample."""
        shape = variants, prompts, samples
        passed = torch.tensor([verdict.success for verdict in flat], dtype=torch.bool)
        grades = [verdict.score for verdict in flat if verdict.score is not None]
        scores = torch.tensor(grades).reshape(shape) if len(grades) == len(flat) else None
        reasons = shaped([verdict.reason for verdict in flat], *shape)
        return cls(passed.reshape(shape), reasons, scores)


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses to one set of prompts: those of the unablated model first, then of its variants.

    Attributes:
        prompts: what was asked, without template.
        texts: the responses, by variant, prompt and sample.
        reasons: why the judge decided as it did, likewise.
        success: the judge's verdicts: on harmful prompts, attack successes.
        refused: responses that open with a refusal.
        coherent: responses that are readable text.
        divergence: KL(unablated ‖ variant) of the next token at the end of each prompt, in nats.
        clusters: the number of each prompt's cluster, if some are alike.
        panel: what each judge of a panel says, by name, the first that of `success` again; empty if
            there is none.
        scores: the judge's, if it grades.
    """

    prompts: tuple[str, ...]
    texts: Texts
    reasons: Texts
    success: Bool[Tensor, "variant prompt sample"]
    refused: Bool[Tensor, "variant prompt sample"]
    coherent: Bool[Tensor, "variant prompt sample"]
    divergence: Float[Tensor, "variant prompt"]
    clusters: Int[Tensor, " prompt"] | None = None
    panel: Mapping[str, Opinion] = field(default_factory=dict)
    scores: Float[Tensor, "variant prompt sample"] | None = None

    def outcomes(self, metric: Metric) -> Bool[Tensor, "variant prompt sample"]:
        """Which responses count for a metric."""
        if metric == "asr":
            return self.success
        if metric == "coherent_asr":
            return self.success & self.coherent
        return self.refused if metric == "refusal" else self.coherent

    def rate(self, metric: Metric, variant: int) -> Rate:
        """The share of responses that count, with an interval over prompts."""
        return self.share(self.outcomes(metric)[variant])

    def share(self, counted: Bool[Tensor, "prompt sample"]) -> Rate:
        """The share of a variant's responses, with an interval over prompts."""
        return Rate(counted.double().mean(1).sum().item(), len(self.prompts), self.independent)

    @property
    def independent(self) -> float | None:
        """As how many prompts they count, if those of a cluster say no more than one (Kish 1965).

        `None` without clusters. With clusters of one size it is how many there are; a large one
        among small ones makes it less, because it weighs more in the share.
        """
        if self.clusters is None:
            return None
        return len(self.prompts) ** 2 / self.clusters.bincount().square().sum().item()

    def only(self, variant: int) -> Responses:
        """Those of one variant alone."""
        one = slice(variant, variant + 1)
        return replace(
            self,
            texts=self.texts[one],
            reasons=self.reasons[one],
            success=self.success[one],
            refused=self.refused[one],
            coherent=self.coherent[one],
            divergence=self.divergence[one],
            scores=None if self.scores is None else self.scores[one],
            panel={name: opinion.only(one) for name, opinion in self.panel.items()},
        )

    def notes(self, name: str) -> list[str]:
        """How many of its prompts count, if some are alike; `name` is what they are."""
        if self.clusters is None:
            return []
        return [
            f"The {len(self.prompts)} {name} prompts count as {self.independent:.3g} independent "
            f"ones: they are in {int(self.clusters.max()) + 1} clusters."
        ]

    def differs(self, metric: Metric, variant: int) -> float:
        """Exact paired p-value of a variant against the unablated model.

        Prompt by prompt, or cluster by cluster if there are any.
        """
        counts = self.outcomes(metric).sum(2)
        if self.clusters is not None:
            together = counts.new_zeros(len(counts), int(self.clusters.max()) + 1)
            counts = together.index_add(1, self.clusters, counts)
        return paired_p(counts[0].tolist(), counts[variant].tolist())

    def rows(self, names: Sequence[str], variants: Sequence[Variant]) -> list[dict[str, Any]]:
        """Every response with its verdicts; `variants` are the heads that were ablated in each."""
        return [
            {
                "condition": names[variant],
                "heads": " ".join(map(str, own_group(variants[variant], prompt))),
                "prompt": prompt,
                "sample": sample,
                "text": self.prompts[prompt],
                "response": response,
                "success": bool(self.success[variant, prompt, sample]),
                "coherent": bool(self.coherent[variant, prompt, sample]),
                "refused": bool(self.refused[variant, prompt, sample]),
                "reason": self.reasons[variant][prompt][sample],
                **self._score(variant, prompt, sample),
                **{
                    column: told
                    for judge, opinion in self.panel.items()
                    for column, told in (
                        (judge, bool(opinion.success[variant, prompt, sample])),
                        (f"{judge}: why", opinion.reasons[variant][prompt][sample]),
                    )
                },
            }
            for variant, answers in enumerate(self.texts)
            for prompt, samples in enumerate(answers)
            for sample, response in enumerate(samples)
        ]

    def _score(self, *place: int) -> dict[str, float]:
        return {} if self.scores is None else {"score": self.scores[place].item()}

    def mean_score(self, scores: Float[Tensor, "prompt sample"]) -> tuple[float, float, float]:
        """A variant's mean score, with the 95 % bootstrap-t interval over prompts.

        NaN for the interval if all are equal, there are fewer than six, or some prompts are alike:
        then it is not known.
        """
        each = scores.double().mean(1).tolist()
        known = self.clusters is None and len(each) >= LEAST
        ends = studentised_interval(each, (0.0, 1.0)) if known else None
        return (sum(each) / len(each), *(ends or (math.nan, math.nan)))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """What is kept as tensors in a file."""
        names = ("success", "refused", "coherent", "divergence", "clusters", "scores")
        found = {f"{prefix}.{name}": getattr(self, name) for name in names}
        for number, opinion in enumerate(self.panel.values()):
            found[f"{prefix}.panel.{number}"] = opinion.success.clone()  # the first is `success`
            if opinion.scores is not None:
                found[f"{prefix}.panel.{number}.scores"] = opinion.scores.clone()
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def header(self) -> dict[str, Any]:
        """What is kept as JSON in a file."""
        prompts = [one.messages if isinstance(one, Chat) else one for one in self.prompts]
        said = {"prompts": prompts, "texts": self.texts, "reasons": self.reasons}
        panel = {name: opinion.reasons for name, opinion in self.panel.items()}
        return {**said, "panel": panel} if panel else said

    @classmethod
    def restored(
        cls, prefix: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> Responses:
        """From what `tensors` and `header` gave."""
        return cls(
            prompts=tuple(
                prompt if isinstance(prompt, str) else Chat(prompt) for prompt in header["prompts"]
            ),
            texts=nested(header["texts"]),
            reasons=nested(header["reasons"]),
            success=tensors[f"{prefix}.success"],
            refused=tensors[f"{prefix}.refused"],
            coherent=tensors[f"{prefix}.coherent"],
            divergence=tensors[f"{prefix}.divergence"],
            clusters=tensors.get(f"{prefix}.clusters"),
            scores=tensors.get(f"{prefix}.scores"),
            panel={
                name: Opinion(
                    tensors[f"{prefix}.panel.{number}"],
                    nested(reasons),
                    tensors.get(f"{prefix}.panel.{number}.scores"),
                )
                for number, (name, reasons) in enumerate(header.get("panel", {}).items())
            },
        )


def nested(lists: Sequence[Sequence[Sequence[str]]]) -> Texts:
    """Lists of lists of lists as tuples."""
    return tuple(tuple(tuple(inner) for inner in middle) for middle in lists)


def shaped(flat: Sequence[str], variants: int, prompts: int, samples: int) -> Texts:
    """A flat list by variant, prompt and sample."""
    rows = [tuple(flat[start : start + samples]) for start in range(0, len(flat), samples)]
    assert len(rows) == variants * prompts
    return tuple(
        tuple(rows[start : start + prompts]) for start in range(0, variants * prompts, prompts)
    )

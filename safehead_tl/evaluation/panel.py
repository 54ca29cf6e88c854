"""What several judges say of the same answers: their shares, how far they agree, and where not."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.generation import Responses
from safehead_tl.results import Rate


@dataclass(frozen=True, eq=False)
class Panel:
    """Several judges of the same answers to harmful prompts.

    Attributes:
        responses: the answers, with what each judge says.
        conditions: what was done in each variant of the answers.
        ablated: which of them has the heads ablated; that of the model as it is, if there are none.
    """

    responses: Responses
    conditions: tuple[str, ...]
    ablated: int

    @property
    def judges(self) -> tuple[str, ...]:
        """Their names; the first is the one that the evaluation goes by."""
        return tuple(self.responses.panel)

    def asr(self, judge: str, condition: int | None = None) -> Rate:
        """Attack success rate by one judge.

        Args:
            judge: its name in `judges`.
            condition: its number in `conditions`; by default the one with the heads ablated.

        Raises:
            SafeheadError: if no judge is called so.
        """
        if judge not in self.judges:
            raise SafeheadError(f"judge {judge!r} is not here: use {', '.join(self.judges)}")
        if condition is not None and not 0 <= condition < len(self.conditions):
            raise SafeheadError(
                f"condition {condition} is not here: give a number below {len(self.conditions)}"
            )
        variant = self.ablated if condition is None else condition
        return self.responses.share(self.responses.panel[judge].success[variant])

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest attack success rate with the heads ablated, over judges."""
        shares = [self.asr(judge).share for judge in self.judges]
        return min(shares), max(shares)

    def to_frame(self) -> pd.DataFrame:
        """Every judge's attack success rate in every condition.

        Returns:
            Columns `judge, condition, share, low, high, n`.
        """
        rows = []
        for judge, (variant, condition) in itertools.product(
            self.judges, enumerate(self.conditions)
        ):
            rate = self.asr(judge, variant)
            low, high = rate.interval
            rows.append((judge, condition, rate.share, low, high, rate.total))
        return pd.DataFrame(rows, columns=["judge", "condition", "share", "low", "high", "n"])

    def agreement(self) -> dict[str, float]:
        """How far the judges agree beyond chance, on the answers with the heads ablated.

        Returns:
            `fleiss`, Fleiss' kappa (1971) of all; `krippendorff`, Krippendorff's alpha (nominal);
            and Cohen's kappa (1960) of each two, by `"one, other"`. 1 is perfect agreement, 0 that
            of chance; NaN where the judges say one and the same of every answer, so that there is
            nothing to agree on.
        """
        votes = self._votes(self.ablated)
        found = {"fleiss": _fleiss(votes), "krippendorff": _krippendorff(votes)}
        for one, other in itertools.combinations(range(len(votes)), 2):
            pair = f"{self.judges[one]}, {self.judges[other]}"
            found[pair] = _cohen(votes[one], votes[other])
        return found

    def disagreements(self) -> pd.DataFrame:
        """The answers of which judges differ, without and with the heads ablated, one a row.

        Returns:
            Columns `condition, prompt, sample, text, response`; and of each judge its verdict,
            under its name, and its reason, under `"NAME: why"`.
        """
        rows = []
        for variant in sorted({0, self.ablated}):
            votes = self._votes(variant)
            for place in (votes != votes[0]).any(0).nonzero().flatten().tolist():
                prompt, sample = divmod(place, self.responses.success.shape[2])
                row: dict[str, Any] = {
                    "condition": self.conditions[variant],
                    "prompt": prompt,
                    "sample": sample,
                    "text": self.responses.prompts[prompt],
                    "response": self.responses.texts[variant][prompt][sample],
                }
                for judge, opinion in self.responses.panel.items():
                    row[judge] = bool(opinion.success[variant, prompt, sample])
                    row[f"{judge}: why"] = opinion.reasons[variant][prompt][sample]
                rows.append(row)
        named = ["condition", "prompt", "sample", "text", "response"]
        each = [column for judge in self.judges for column in (judge, f"{judge}: why")]
        return pd.DataFrame(rows, columns=[*named, *each])

    def to_dict(self) -> dict[str, Any]:
        """Shares and agreement as plain values; no prompts and no answers."""
        return {
            "shares": self.to_frame().to_dict("records"),
            "span": list(self.span),
            "agreement": {
                name: None if math.isnan(one) else one for name, one in self.agreement().items()
            },
            "disagreements": len(self.disagreements()),
        }

    def __repr__(self) -> str:
        low, high = self.span
        return f"<Panel of {', '.join(self.judges)}: ASR {low:.2f} to {high:.2f}>"

    def _votes(self, variant: int) -> Bool[Tensor, "judge answer"]:
        opinions = self.responses.panel.values()
        return torch.stack([opinion.success[variant].flatten() for opinion in opinions])


def _cohen(one: Bool[Tensor, " answer"], other: Bool[Tensor, " answer"]) -> float:
    alike = (one == other).double().mean().item()
    first, second = one.double().mean().item(), other.double().mean().item()
    chance = first * second + (1 - first) * (1 - second)
    return (alike - chance) / (1 - chance) if chance < 1 else float("nan")


def _fleiss(votes: Bool[Tensor, "judge answer"]) -> float:
    count, yes = len(votes), votes.double().sum(0)
    pairs = yes * (yes - 1) + (count - yes) * (count - yes - 1)
    alike, share = pairs.mean().item() / (count * (count - 1)), yes.mean().item() / count
    chance = share**2 + (1 - share) ** 2
    return (alike - chance) / (1 - chance) if chance < 1 else float("nan")


def _krippendorff(votes: Bool[Tensor, "judge answer"]) -> float:
    from krippendorff import alpha

    if bool((votes == votes[0, 0]).all()):
        return float("nan")
    return float(alpha(votes.int().numpy(), level_of_measurement="nominal"))

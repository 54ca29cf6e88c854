"""What `evaluate` returns: shares with intervals, tests and controls, and every response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor
from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.answered import Answered, Said, plain_rows
from safehead_tl.evaluation.controls import drawn_words
from safehead_tl.evaluation.panel import Panel
from safehead_tl.generation import METRICS, Metric, Responses
from safehead_tl.heads import Group, Head, Variant, is_of_each, variant_names
from safehead_tl.results import HeadScores, Provenance, Rate, figures, holm, rank_p

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNABLATED, ABLATED = 0, 1
TESTS = ("p_unablated", "p_controls", "holm_unablated", "holm_controls")


@dataclass(frozen=True)
class Summary:
    """One share: of one set of prompts, by one metric, with one set of heads ablated.

    Attributes:
        prompts: `"harmful"` or `"harmless"`.
        metric: which responses count.
        unablated: the share without ablation.
        ablated: the share with the heads ablated; `None` if there are none.
        p_unablated: exact paired p-value of the two.
        controls: the share with each control set ablated.
        p_controls: how likely a random control moves the share as far from the unablated one.
        holm_unablated: `p_unablated`, corrected for the number of shares of the evaluation (Holm).
        holm_controls: `p_controls`, likewise.
    """

    prompts: str
    metric: Metric
    unablated: Rate
    ablated: Rate | None
    p_unablated: float | None
    controls: tuple[float, ...]
    p_controls: float | None
    holm_unablated: float | None = None
    holm_controls: float | None = None

    @property
    def control_mean(self) -> float | None:
        """Over the control sets."""
        return sum(self.controls) / len(self.controls) if self.controls else None

    def p_words(self, against: Literal["unablated", "controls"]) -> str:
        """A p-value, with the corrected one in brackets; blank if there is none."""
        p, corrected = (getattr(self, f"{kind}_{against}") for kind in ("p", "holm"))
        return "" if p is None else f"{p:.1g} ({corrected:.1g})"


@dataclass(frozen=True, eq=False)
class Evaluation(Answered):
    """How a model behaves with a set of heads ablated, without, and with random ones ablated.

    Attributes:
        heads: the heads that were ablated; if each prompt had its own, those that any prompt chose,
            the most often chosen first.
        controls: the random sets, of the same layers or blocks of layers; if each prompt had its
            own heads, a set for each prompt.
        harmful: responses to the harmful prompts: unablated, ablated, then each control.
        harmless: likewise, if harmless prompts were given.
        provenance: what it was computed from.
        per_query: the heads that each prompt had ablated, if it had its own.
    """

    heads: tuple[Head, ...]
    controls: tuple[Variant, ...]
    harmful: Responses
    harmless: Responses | None
    provenance: Provenance
    per_query: tuple[Group, ...] = ()

    @property
    def asr(self) -> Rate:
        """Attack success rate with the heads ablated (paper Eq. 10)."""
        return self.harmful.rate("asr", self._ablated)

    @property
    def coherent_asr(self) -> Rate:
        """The share that is an attack success and readable text."""
        return self.harmful.rate("coherent_asr", self._ablated)

    @property
    def refusal_rate(self) -> Rate:
        """The share that opens with a refusal."""
        return self.harmful.rate("refusal", self._ablated)

    @property
    def unablated_asr(self) -> Rate:
        """Attack success rate of the model as it is."""
        return self.harmful.rate("asr", UNABLATED)

    @property
    def _ablated(self) -> int:
        return ABLATED if self.heads else UNABLATED

    @property
    def conditions(self) -> tuple[str, ...]:
        """What was done in each variant of the responses."""
        ablated = [f"ablated: {self.ablated_words()}"] if self.heads else []
        named = [
            f"each prompt's set {number}" if is_of_each(group) else " ".join(map(str, group))
            for number, group in enumerate(self.controls, 1)
        ]
        return ("unablated", *ablated, *(f"control: {name}" for name in named))

    @property
    def _variants(self) -> tuple[Variant, ...]:
        ablated = (self.per_query or self.heads,) if self.heads else ()
        return ((), *ablated, *self.controls)

    def ablated_words(self, joint: str = " ") -> str:
        """What was ablated: the heads by their names, or how many of each prompt's own."""
        if not self.per_query:
            return joint.join(map(str, self.heads)) or "no heads"
        count = len(self.per_query[0])
        return f"each prompt's own {'highest head' if count == 1 else f'{count} highest heads'}"

    @property
    def panel(self) -> Panel:
        """What each judge says, how far they agree, and where they do not.

        Raises:
            SafeheadError: if one judge alone was asked.
        """
        if not self.harmful.panel:
            raise SafeheadError("one judge alone was asked: evaluate(judges=[...]) asks others too")
        return Panel(self.harmful, self.conditions, self._ablated)

    def scores(self) -> pd.DataFrame:
        """Mean scores of answers to harmful prompts, by judges that grade.

        Returns:
            Columns `judge, condition, mean, low, high, n`; `low` and `high` are the ends of the
            95 % bootstrap-t interval over prompts, NaN where all score alike, prompts are in
            clusters, or there are fewer than six.

        Raises:
            SafeheadError: if no judge grades.
        """
        if not self._graded():
            raise SafeheadError(
                "no judge grades: give one that does, such as LlmJudge(...).rubric()"
            )
        rows = [
            (name, condition, *self.harmful.mean_score(scores[variant]), len(self.harmful.prompts))
            for name, scores in self._graded().items()
            for variant, condition in enumerate(self.conditions)
        ]
        return pd.DataFrame(rows, columns=["judge", "condition", "mean", "low", "high", "n"])

    def _graded(self) -> dict[str, Tensor]:
        """The scores of judges that grade, by their names."""
        first = self.provenance.settings["judge"]["name"]
        graded = {name: opinion.scores for name, opinion in self.harmful.panel.items()}
        graded = graded or {first: self.harmful.scores}
        return {name: scores for name, scores in graded.items() if scores is not None}

    def chosen(self) -> HeadScores:
        """Which heads prompts chose for themselves: for each head the share of prompts.

        To draw (`heatmap`, `bars`), for a table (`to_frame`), and prompt by prompt (`per_prompt`).

        Raises:
            SafeheadError: if all prompts had the same heads ablated.
        """
        if not self.per_query:
            raise SafeheadError("no prompt chose its own heads: evaluate(heads=scores.per_query())")
        size = self.provenance.model["n_layers"], self.provenance.model["n_heads"]
        picked = torch.zeros(len(self.per_query), *size)
        for prompt, group in enumerate(self.per_query):
            for head in group:
                picked[prompt, head.layer, head.head] = 1
        return HeadScores("chosen", "rate", picked.mean(0), picked, (), self.provenance)

    def summaries(self) -> list[Summary]:
        """Every share that was measured."""
        found = [
            self._summary(name, responses, metric)
            for name, responses in self._sets()
            for metric in METRICS
        ]
        unablated = holm([summary.p_unablated for summary in found])
        controls = holm([summary.p_controls for summary in found])
        return [
            replace(summary, holm_unablated=one, holm_controls=other)
            for summary, one, other in zip(found, unablated, controls, strict=True)
        ]

    @property
    def least_p(self) -> float | None:
        """The smallest `p_controls` that could have come out; `None` without controls."""
        return 1 / (1 + len(self.controls)) if self.controls else None

    def notes(self) -> list[str]:
        """What limits the shares and tests, a sentence each."""
        told, notes = self.provenance.settings, []
        if self.least_p is not None:
            shares = len(METRICS) * len(list(self._sets()))
            corrected = min(1.0, shares * self.least_p)
            notes.append(
                f"Random: {drawn_words(told['matching'])}: p against them can be "
                f"{self.least_p:.2g} at the least, {corrected:.2g} after Holm."
            )
        if self.per_query:
            notes.append(own_words(self.per_query, told["per_query"]["measure"]))
        elif self.heads:
            notes.append(choice_words(told["chosen_on"], dict(self._sets())))
        return notes + [note for name, found in self._sets() for note in found.notes(name)]

    def _sets(self) -> Iterator[tuple[str, Responses]]:
        yield "harmful", self.harmful
        if self.harmless is not None:
            yield "harmless", self.harmless

    def _summary(self, name: str, responses: Responses, metric: Metric) -> Summary:
        before = responses.rate(metric, UNABLATED)
        first = ABLATED + 1 if self.heads else ABLATED
        controls = tuple(
            responses.rate(metric, variant).share for variant in range(first, len(responses.texts))
        )
        after = responses.rate(metric, ABLATED) if self.heads else None
        counts = responses.outcomes(metric).sum((1, 2))  # whole numbers: no ties are lost
        moved = (counts - counts[UNABLATED]).abs().tolist()
        return Summary(
            prompts=name,
            metric=metric,
            unablated=before,
            ablated=after,
            p_unablated=responses.differs(metric, ABLATED) if self.heads else None,
            controls=controls,
            p_controls=rank_p(moved[ABLATED], moved[first:]) if self.heads and controls else None,
        )

    def divergence(self, prompts: str = "harmless") -> dict[str, float]:
        """Mean KL(unablated ‖ ablated) of the next token on a set of prompts, in nats.

        Returns:
            `ablated`, and `controls`, their mean; what of them there is.

        Raises:
            SafeheadError: if no such prompts were given.
        """
        responses = dict(self._sets()).get(prompts)
        if responses is None:
            raise SafeheadError(f"no {prompts} prompts were given to evaluate")
        means = responses.divergence.mean(1).tolist()
        found = {"ablated": means[ABLATED]} if self.heads else {}
        controls = means[ABLATED + 1 :]
        return found | ({"controls": sum(controls) / len(controls)} if controls else {})

    def to_frame(self) -> pd.DataFrame:
        """Every share of every condition, one a row.

        Returns:
            Columns `prompts, metric, condition, heads, share, low, high, n, independent,
            p_unablated, p_controls, holm_unablated, holm_controls`; the last four only for the
            ablated heads.
        """
        rows = []
        for summary in self.summaries():
            responses = dict(self._sets())[summary.prompts]
            for variant, said in enumerate(self.conditions):
                condition, _, heads = said.partition(": ")
                rate = responses.rate(summary.metric, variant)
                tested = bool(self.heads) and variant == ABLATED
                rows.append(
                    {
                        "prompts": summary.prompts,
                        "metric": summary.metric,
                        "condition": condition,
                        "heads": heads,
                        "share": rate.share,
                        "low": rate.interval[0],
                        "high": rate.interval[1],
                        "n": rate.total,
                        "independent": rate.independent or rate.total,
                        **{name: getattr(summary, name) if tested else None for name in TESTS},
                    }
                )
        return pd.DataFrame(rows)

    def responses(self) -> pd.DataFrame:
        """As `answers`."""
        return self.answers()

    @override
    def _said(self) -> Iterator[Said]:
        for name, responses in self._sets():
            yield Said(name, responses, self.conditions, self._variants)

    def __repr__(self) -> str:
        return (
            f"<Evaluation: {self.ablated_words()} ablated: ASR {self.asr}, coherent "
            f"{self.coherent_asr}, refusals {self.refusal_rate}; unablated ASR "
            f"{self.unablated_asr}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Shares, tests and provenance as plain values; no prompts and no responses."""
        summaries = [
            {
                "prompts": summary.prompts,
                "metric": summary.metric,
                "unablated": _plain(summary.unablated),
                "ablated": summary.ablated and _plain(summary.ablated),
                "controls": list(summary.controls),
                **{name: getattr(summary, name) for name in TESTS},
            }
            for summary in self.summaries()
        ]
        return {
            "heads": variant_names(self.heads),
            "per_query": variant_names(self.per_query),
            "controls": list(map(variant_names, self.controls)),
            "summaries": summaries,
            "least_p": self.least_p,
            "notes": self.notes(),
            "divergence": {name: self.divergence(name) for name, _ in self._sets()},
            **({"panel": self.panel.to_dict()} if self.harmful.panel else {}),
            **({"scores": plain_rows(self.scores())} if self._graded() else {}),
            "provenance": self.provenance.to_dict(),
        }

    def figure(self) -> go.Figure:
        """The shares with their intervals, next to the controls."""
        return figures.evaluation_figure(self)

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for name, found in self._sets():
            tensors |= found.tensors(name)
        header = {
            "heads": self.heads,
            "controls": self.controls,
            "per_query": self.per_query,
            "sets": {name: found.header() for name, found in self._sets()},
            "provenance": self.provenance.to_dict(),
        }
        return tensors, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Evaluation:
        sets: Mapping[str, Responses] = {
            name: Responses.restored(name, tensors, said) for name, said in header["sets"].items()
        }
        return cls(
            heads=_heads(header["heads"]),
            controls=tuple(map(_heads, header["controls"])),
            harmful=sets["harmful"],
            harmless=sets.get("harmless"),
            provenance=Provenance(**header["provenance"]),
            per_query=_heads(header["per_query"]),
        )


def _heads(written: Sequence[Any]) -> Any:
    """A group of heads, or one for each prompt, from lists of lists of numbers."""
    return tuple(Head(*each) if isinstance(each[0], int) else _heads(each) for each in written)


def _plain(rate: Rate) -> dict[str, Any]:
    return {
        "share": rate.share,
        "interval": list(rate.interval),
        "n": rate.total,
        "independent": rate.independent or rate.total,
    }


def choice_words(chosen_on: Mapping[str, int] | None, sets: Mapping[str, Responses]) -> str:
    """Whether the prompts of an evaluation chose its heads, in a sentence."""
    if chosen_on is None:
        return "Whether any of these prompts chose the heads is not known."
    shared = [
        f"{count} of {len(sets[name].prompts)} {name}" for name, count in chosen_on.items() if count
    ]
    if not shared:
        return "None of these prompts, word for word, chose the heads."
    return (
        f"Heads were chosen on {' and '.join(shared)} prompts that judge them here: on prompts "
        "that did not choose them they may do less."
    )


def chosen_counts(groups: Sequence[Group]) -> list[tuple[Head, int]]:
    """How many prompts chose each head, the most often chosen first; ties by layer, then head."""
    counts = Counter(head for group in groups for head in group)
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def own_words(groups: Sequence[Group], measure: str) -> str:
    """Which heads prompts chose for themselves, and that these prompts judge them."""
    counts = chosen_counts(groups)
    named = ", ".join(f"{head} by {count}" for head, count in counts[:5])
    more = f", and {len(counts) - 5} heads more" if len(counts) > 5 else ""
    return (
        f"Each of the {len(groups)} prompts judges the heads that it chose itself, its highest by "
        f"{measure}: what these do to other prompts is not said. Chosen: {named}{more}."
    )

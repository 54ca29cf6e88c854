"""Asking a model and its ablated variants: generation, verdicts and divergence, piece by piece."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.generation.batched import Row, next_rows
from safehead_tl.generation.decoding import Decoding
from safehead_tl.generation.responses import Opinion, Responses, shaped
from safehead_tl.generation.saying import Saying, as_piece, from_piece
from safehead_tl.heads import Variant, variant_names
from safehead_tl.judges import Judge, Verdict, judged, panel_of, resolve_judge
from safehead_tl.models import Model
from safehead_tl.prompts import PromptBatch, Prompts, Template
from safehead_tl.results import Provenance
from safehead_tl.scan import Run, Work, even_slices

JUDGED_AT_ONCE = 64
"""Responses for which a judge is called once, and whose verdicts are kept together."""


@dataclass(frozen=True)
class Judges:
    """The judges of a run.

    Attributes:
        success: decides what an attack success is.
        refusal: its `success` is that the response does not open with a refusal.
        coherence: its `success` is readable text.
        panel: by what tables call them, those who also decide what an attack success is, the first
            of whom is `success`; empty if nobody else does.
    """

    success: Judge
    refusal: Judge
    coherence: Judge
    panel: Mapping[str, Judge] = field(default_factory=dict)

    @classmethod
    def resolved(
        cls,
        success: str | Judge,
        refusal: str | Judge,
        coherence: str | Judge,
        others: Sequence[str | Judge] = (),
        wordings: Sequence[str] = (),
    ) -> Judges:
        """From names or objects."""
        if isinstance(others, str) or hasattr(others, "judge"):
            raise SafeheadError(f"judges={others!r} is one judge: put it in brackets")
        first = resolve_judge(success)
        panel = panel_of([first, *map(resolve_judge, others)], wordings)
        if (others or wordings) and not panel:
            raise SafeheadError(
                f"judges and wordings name {first.name!r} alone, which judges already: name others"
            )
        return cls(first, resolve_judge(refusal), resolve_judge(coherence), panel)

    def describe(self) -> dict[str, Any]:
        """Their names and settings, as JSON has them."""
        said = {
            "judge": self.success.describe(),
            "refusal": self.refusal.describe(),
            "coherence": self.coherence.describe(),
        }
        if self.panel:
            said["panel"] = {name: judge.describe() for name, judge in self.panel.items()}
        try:
            plain: dict[str, Any] = json.loads(json.dumps(said))
        except (TypeError, ValueError) as error:
            raise SafeheadError(
                f"a judge's describe() must give texts, numbers and lists of them: {error}"
            ) from error
        return plain


@dataclass
class Questioning(Saying):
    """A model that is asked, and who judges.

    Attributes:
        judges: who judges.
    """

    judges: Judges

    @classmethod
    def start(
        cls,
        model: Model,
        prompts: Mapping[str, Prompts],
        template: Template,
        ablation: str | Ablation,
        decoding: Decoding,
        judges: Judges,
        *,
        run: Run,
        identity: Mapping[str, Any],
        by_server: bool = False,
    ) -> Questioning:
        """Checks the inputs as `begin` does, with the judges."""
        told = {**identity, **judges.describe()}
        begun = Saying.begin(
            model, prompts, template, ablation, decoding,
            run=run, identity=told, by_server=by_server,
        )  # fmt: skip
        return cls(**vars(begun), judges=judges)

    def ask(self, name: str, variants: Sequence[Variant]) -> Responses:
        """What the model answers to a set of prompts, with each variant's heads ablated.

        Args:
            name: the set of prompts.
            variants: the heads ablated in each, for all prompts or each prompt's own; the first one
                should be empty.
        """
        batch, samples = self.batches[name], self.decoding.samples
        shape = (len(variants), len(batch.prompts), samples)
        rows = [
            Row(variant, prompt, sample)
            for variant in range(shape[0])
            for prompt in range(shape[1])
            for sample in range(shape[2])
        ]
        texts = [reply.text for reply in self.say(name, rows, variants)]
        asked = [batch.prompts[row.prompt] for row in rows]
        verdicts = {
            role: self._verdicts(f"{name}-{role}", judge, asked, texts)
            for role, judge in (
                ("judge", self.judges.success),
                ("refusal", self.judges.refusal),
                ("coherence", self.judges.coherence),
            )
        }
        passed = {role: Opinion.of(found, *shape) for role, found in verdicts.items()}
        panel = {}
        for number, (told, judge) in enumerate(self.judges.panel.items()):
            panel[told] = passed["judge"]
            if number:
                found = self._verdicts(f"{name}-panel-{number}", judge, asked, texts)
                panel[told] = Opinion.of(found, *shape)
        return Responses(
            prompts=batch.prompts,
            texts=shaped(texts, *shape),
            reasons=passed["judge"].reasons,
            success=passed["judge"].success,
            refused=~passed["refusal"].success,
            coherent=passed["coherence"].success,
            divergence=self._divergence(name, variants),
            panel=panel,
            scores=passed["judge"].scores,
        )

    @override
    def provenance(self, name: str, settings: Mapping[str, Any]) -> Provenance:
        return super().provenance(name, {**settings, **self.judges.describe()})

    def _verdicts(
        self, name: str, judge: Judge, prompts: Sequence[str], responses: Sequence[str]
    ) -> list[Verdict]:
        """Verdicts; a response that several variants give to a prompt is judged once."""
        pairs = list(dict.fromkeys(zip(prompts, responses, strict=True)))
        parts = [pairs[some] for some in even_slices(len(pairs), JUDGED_AT_ONCE)]
        works: list[Work] = []
        for some in parts:
            digest = hashlib.sha256(json.dumps(some).encode()).hexdigest()
            number = len(works) * JUDGED_AT_ONCE
            works.append(Work(f"{name}-{number}", {"texts": digest}, partial(_judge, judge, some)))
        found: dict[tuple[str, str], Verdict] = {}
        with self._bar(len(pairs), f"{name}: {judge.name}") as count:
            for place, kept in self.ledger.all(works):
                verdicts = [Verdict(*told) for told in from_piece(kept)]
                found |= dict(zip(parts[place], verdicts, strict=True))
                count(len(parts[place]))
        return [found[pair] for pair in zip(prompts, responses, strict=True)]

    def _divergence(
        self, name: str, variants: Sequence[Variant]
    ) -> Float[Tensor, "variant prompt"]:
        """KL(unablated ‖ variant) of the next token, in nats."""
        batch = self.batches[name]
        count, named = len(batch.prompts), list(map(variant_names, variants))
        rows = [
            Row(variant, prompt, 0) for variant in range(len(variants)) for prompt in range(count)
        ]

        @cache
        def before() -> Tensor:
            return self._next(batch, [Row(0, prompt, 0) for prompt in range(count)], ((),))

        def moved(some: Sequence[Row]) -> Tensor:
            unmoved = before()[[row.prompt for row in some]]
            return (unmoved.exp() * (unmoved - self._next(batch, some, variants))).sum(1).cpu()

        works = [
            Work(
                f"{name}-divergence-{some.start}",
                {"rows": len(rows), "stop": some.stop, "variants": named},
                partial(moved, rows[some]),
            )
            for some in even_slices(len(rows), self._planned_rows)
        ]
        found = [result for _, result in sorted(self.ledger.all(works), key=itemgetter(0))]
        return torch.cat(found).clamp(min=0).unflatten(0, (len(variants), count))

    def _next(
        self, batch: PromptBatch, rows: Sequence[Row], variants: Sequence[Variant]
    ) -> Float[Tensor, "row vocab"]:
        """The next token's log-probabilities at the end of each row's prompt."""

        def run() -> list[Tensor]:
            return [
                next_rows(self.model, batch, rows[some], variants, self.ablation)
                for some in even_slices(len(rows), self.passes.rows)
            ]

        found = torch.cat(self.passes.fitted(run))
        self.ledger.cost.token_layers += len(rows) * batch.tokens.shape[1] * self.model.cfg.n_layers
        return found


def _judge(judge: Judge, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Verdicts as bytes, to be kept as a piece."""
    prompts, responses = zip(*pairs, strict=True)
    verdicts = judged(judge, prompts, responses)
    return as_piece([dataclasses.astuple(verdict) for verdict in verdicts])

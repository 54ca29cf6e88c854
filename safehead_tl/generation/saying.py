"""Texts of a model and its ablated variants, from here or from a server, kept piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.generation.batched import (
    ENDED,
    Row,
    decode,
    fitting_rows,
    generate_fitted,
    room_behind,
)
from safehead_tl.generation.decoding import Decoding
from safehead_tl.generation.server import Reply, Served, Server, find_served
from safehead_tl.heads import Variant, variant_names
from safehead_tl.models import Model, check_model, describe, end_tokens
from safehead_tl.prompts import PromptBatch, Prompts, Template, encode
from safehead_tl.results import Provenance
from safehead_tl.scan import (
    Ledger,
    Passes,
    Run,
    RunDirectory,
    Work,
    check_run,
    environment_of,
    even_slices,
    identity_of,
    progress_bar,
)

Count: TypeAlias = Callable[[int], object]
"""Counts what is done."""


@dataclass
class Saying:
    """A model, what may be done to its heads, and how it answers.

    Making one checks the inputs; with a run directory, finished pieces are kept there.

    Attributes:
        model: the model.
        batches: the prompts, by the name of the set.
        ablation: what is done to heads, prepared.
        decoding: how texts are generated.
        passes: how many texts are generated at once.
        run: how it runs.
        ledger: what was done until now.
        served: the servers that answer for some variants.
    """

    model: Model
    batches: Mapping[str, PromptBatch]
    ablation: Ablation
    decoding: Decoding
    passes: Passes
    run: Run
    ledger: Ledger
    served: Sequence[Served]

    @classmethod
    def begin(
        cls,
        model: Model,
        prompts: Mapping[str, Prompts],
        template: Template,
        ablation: str | Ablation,
        decoding: Decoding,
        *,
        run: Run,
        identity: Mapping[str, Any],
        by_server: bool = True,
    ) -> Saying:
        """Checks the inputs, and opens the run directory if one was given.

        Args:
            model: the model.
            prompts: sets of prompts by name; mean ablation takes its mean over the first.
            template: of all of them.
            ablation: what is done to heads.
            decoding: how texts are generated.
            run: how it runs.
            identity: what else makes this run what it is.
            by_server: whether a server may answer.
        """
        check_model(model)
        check_run(run, by_server=by_server)
        ledger = Ledger()
        resolved = resolve_ablation(ablation)
        batches = {name: encode(model, texts, template) for name, texts in prompts.items()}
        first, *_ = batches.values()
        decoding = decoding.fitted(room_behind(model, *batches.values()))
        rows = min(fitting_rows(model, batch, decoding, run) for batch in batches.values())
        prepared = resolved.prepare(model, first)
        served = find_served(run.on, model, prepared) if isinstance(run.on, Server) else []
        if run.run_dir is not None:
            told = {
                **identity,
                **{name: batch.describe() for name, batch in batches.items()},
                "decoding": decoding.describe(),
                "ends": end_tokens(model),
                **identity_of(describe(model), resolved),
                **({"served": [each.describe()["heads"] for each in served]} if served else {}),
            }
            around = environment_of(first.tokens.device, run.memory)
            if served:
                around["served"] = [each.describe() for each in served]
            ledger.directory = RunDirectory.open(run, told, around, {"rows": rows})
            rows = min(rows, ledger.directory.plan["rows"])
        return cls(model, batches, prepared, decoding, Passes(rows), run, ledger, served)

    def say(self, name: str, rows: Sequence[Row], variants: Sequence[Variant]) -> list[Reply]:
        """What is said to prompts, row by row.

        Args:
            name: the set of prompts.
            rows: what to generate.
            variants: the heads ablated in each, for all prompts or each prompt's own.

        Raises:
            SafeheadError: if a server serves what no variant asks for.
        """
        batch, found = self.batches[name], dict[int, Reply]()
        named, here = list(map(variant_names, variants)), dict(enumerate(rows))
        with self._bar(len(rows), f"{name} prompts, generating") as count:
            for served in self.served:
                theirs = {
                    number: row
                    for number, row in here.items()
                    if served.answers(variants[row.variant])
                }
                if not theirs:
                    raise SafeheadError(
                        f"{served.server.address} serves {served.words}, which nothing here asks "
                        f"for: asked for are {', '.join(map(str, named[:2]))}"
                    )
                found |= self._served(name, served, theirs, count)
                here = {number: row for number, row in here.items() if number not in theirs}
            numbers, rest = list(here), list(here.values())
            parts = list(even_slices(len(rest), self._planned_rows)) if rest else []
            works = [
                Work(
                    f"{name}-texts-{some.start}",
                    {"rows": len(rest), "stop": some.stop, "variants": named},
                    partial(self._generate, batch, rest[some], variants),
                )
                for some in parts
            ]
            for place, new in self.ledger.all(works):
                found |= dict(zip(numbers[parts[place]], self._replies(new), strict=True))
                count(len(new))
        return [found[number] for number in range(len(rows))]

    def provenance(self, name: str, settings: Mapping[str, Any]) -> Provenance:
        """What was run until now; a text counts as many passes as it has tokens over its prompt."""
        told: dict[str, Any] = {**settings, "decoding": self.decoding.describe()}
        if self.served:
            told["served"] = [each.describe() for each in self.served]
        return self.ledger.provenance(describe(self.model), self.batches[name], self.ablation, told)

    def _served(
        self, name: str, served: Served, rows: Mapping[int, Row], count: Count
    ) -> dict[int, Reply]:
        """What a server says, each answer a piece."""
        pieces = {
            f"{name}-served-{row.variant}-{row.prompt}-{row.sample}": number
            for number, row in rows.items()
        }

        def ask(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
            count(len(rows) - len(names))
            asked = [rows[pieces[each]] for each in names]
            for place, reply in served.ask(self.model, self.batches[name], asked, self.decoding):
                count(1)
                yield names[place], as_piece(reply)

        kept = self.ledger.kept_each(list(pieces), {"heads": served.describe()["heads"]}, ask)
        return {pieces[each]: Reply(*from_piece(content)) for each, content in kept.items()}

    @property
    def _planned_rows(self) -> int:
        kept = self.ledger.directory
        return self.passes.rows if kept is None else int(kept.plan["rows"])

    def _replies(self, new: Int[Tensor, "row step"]) -> list[Reply]:
        ends = set(end_tokens(self.model))
        own = [[token for token in row if token != ENDED] for row in new.tolist()]
        return [
            Reply(text, len(row), row[-1] in ends)
            for text, row in zip(decode(self.model, new), own, strict=True)
        ]

    def _generate(
        self, batch: PromptBatch, rows: Sequence[Row], variants: Sequence[Variant]
    ) -> Int[Tensor, "row step"]:
        new = generate_fitted(
            self.model, batch, rows, self.decoding, variants, self.ablation, self.passes
        )
        positions = batch.tokens.shape[1] + new.shape[1] - 1
        self.ledger.cost.token_layers += len(rows) * positions * self.model.cfg.n_layers
        return new

    def _bar(self, total: int, label: str) -> AbstractContextManager[Count]:
        return progress_bar(self.run, total, label, "text", delay=0.5)


def as_piece(value: Any) -> UInt8[Tensor, " byte"]:
    """Plain values as bytes, to be kept as a piece."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_piece(content: UInt8[Tensor, " byte"]) -> Any:
    """The values that were kept."""
    return json.loads(content.numpy().tobytes())

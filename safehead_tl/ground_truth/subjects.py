"""What contestants are asked about: a model, prompts, and the truth about its heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safehead_tl.ground_truth.cache import Grown
from safehead_tl.ground_truth.compiling import Compiled
from safehead_tl.ground_truth.contest import Contestant, Ranking, rank
from safehead_tl.ground_truth.oracle import Oracle, consult
from safehead_tl.ground_truth.reversion import ReversionTruth, reversion_truth
from safehead_tl.heads import Head
from safehead_tl.measures import Openings
from safehead_tl.models import Model, describe
from safehead_tl.organism import DEMO, REFUSAL, REWORDED, Language
from safehead_tl.writing import write_file

PROMPTS = 32
"""Harmful ones to scan, and as many benign ones; all from pairs that were trained on."""

HELD_OUT = 32
"""Harmful requests on which the truth is found."""

TOP = 3
"""Heads that a score should put first where none was chosen: those of the highest truth."""

FOUND = 1
"""Counts up when truths or oracles are found otherwise."""


@dataclass(frozen=True)
class Subject:
    """A model about whose heads the truth is known.

    Attributes:
        model: the model that refuses.
        base: the same before it learned to.
        planted: the heads that carry the refusal by construction; none where none was chosen.
        decoys: heads that do something else.
        folder: keeps what was found out.
        language: its words.
    """

    model: Model
    base: Model
    planted: tuple[Head, ...]
    decoys: tuple[Head, ...]
    folder: Path
    language: Language = DEMO
    _found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_organism(cls, grown: Grown, language: Language) -> Subject:
        """An organism that was trained."""
        recipe = grown.recipe
        models = grown.model(), grown.model("base")
        return cls(*models, recipe.heads, recipe.decoy_heads, grown.directory, language)

    @classmethod
    def of_compiled(cls, made: Compiled, cache: Path) -> Subject:
        """A model whose weights were written by hand; its folder is named by these."""
        weights = "".join(describe(each)["weights_hash"] for each in (made.model, made.base))
        name = f"{made.kind}-{hashlib.sha256(weights.encode()).hexdigest()[:16]}"
        return cls(made.model, made.base, made.carriers, made.decoys, cache / name)

    @property
    def harmful(self) -> list[str]:
        """To scan."""
        return self.language.prompts("harmful", "train", PROMPTS)

    @property
    def benign(self) -> list[str]:
        """To compare with."""
        return self.language.prompts("benign", "train", PROMPTS)

    @property
    def truth(self) -> ReversionTruth:
        """How much of the probability of refusing each head's learned weights carry."""

        def find() -> ReversionTruth:
            held_out = self.language.prompts("harmful", "test", HELD_OUT)
            texts = (REFUSAL, REWORDED), self.language.tools
            openings = Openings.of_texts(self.model, *texts)
            return reversion_truth(self.model, self.base, held_out, openings)

        found: ReversionTruth = self._kept(f"truth-{FOUND}", ReversionTruth, find)
        return found

    def oracle(self, ablation: str) -> Oracle:
        """What every head and pair does when ablated."""
        name = f"oracle-{ablation}-{FOUND}"
        found: Oracle = self._kept(
            name, Oracle, lambda: consult(self.model, self.language, ablation)
        )
        return found

    def ranking(self, contestant: Contestant, count: bool) -> Ranking:
        """What a contestant makes of it, as `rank`; one that was registered is asked each time."""

        def find() -> Ranking:
            asked = self.model, self.harmful, self.benign
            return rank(contestant, *asked, base=self.base, count=count)

        if not contestant.digest:
            return find()
        name = f"{'counted' if count else 'ranking'}-{contestant.digest}"
        found: Ranking = self._kept(name, Ranking, find)
        return found

    @property
    def wanted(self) -> tuple[Head, ...]:
        """The heads that a score should put first."""
        if self.planted:
            return self.planted
        values = self.truth.values
        highest = values.flatten().argsort(descending=True, stable=True)[:TOP]
        return tuple(Head(*divmod(place, values.shape[1])) for place in highest.tolist())

    def _kept(self, name: str, kind: Any, find: Callable[[], Any]) -> Any:
        """What was found out before, or is now."""
        file = self.folder / f"{name}.json"
        if name not in self._found and file.is_file():
            self._found[name] = kind.from_dict(json.loads(file.read_text("utf-8")))
        if name not in self._found:
            self._found[name] = find()
            self.folder.mkdir(parents=True, exist_ok=True)
            told = json.dumps(self._found[name].to_dict()).encode()
            write_file(file, told, overwrite=True)  # another run may have found it meanwhile
        return self._found[name]

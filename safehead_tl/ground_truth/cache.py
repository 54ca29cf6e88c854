"""A directory of trained organisms, each named by a digest of everything that decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from safehead_tl.ground_truth.family import EXAMINATION, TRIALS, OrganismKind, flaws
from safehead_tl.models import Model, load_model, without_bars
from safehead_tl.organism import DEMO, VERSION, Language, Recipe, train_organism
from safehead_tl.writing import write_file


@dataclass(frozen=True)
class Grown:
    """An organism that is there.

    Attributes:
        recipe: what decided it.
        directory: where it is.
        flaws: what it does otherwise than the recipe says, in sentences.
    """

    recipe: Recipe
    directory: Path
    flaws: tuple[str, ...]

    def model(self, name: str = "aligned") -> Model:
        """The aligned model, or the base."""
        return _loaded(self.directory, name)


@dataclass(frozen=True)
class OrganismCache:
    """Organisms on disk; one that is not there is trained.

    A run that was killed goes on: a directory is there when it is whole. A changed recipe, language
    or training code has another digest.

    Attributes:
        path: the directory.
        language: the words of all its organisms.
        progress: whether training shows progress bars.
    """

    path: Path
    language: Language = DEMO
    progress: bool = False

    def digest(self, recipe: Recipe) -> str:
        """Of recipe, words and the version of the training code."""
        told = [VERSION, recipe.to_dict(), asdict(self.language)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def grown(self, recipe: Recipe) -> Grown:
        """An organism, trained and examined if it is not there."""
        directory = self.path / self.digest(recipe)
        if not directory.is_dir():
            base = next(self._relatives(recipe), None)
            with without_bars():
                train_organism(directory, recipe, self.language, base=base, progress=self.progress)
        examined = directory / f"flaws-{EXAMINATION}.json"
        if not examined.is_file():
            models = _loaded(directory, "aligned"), _loaded(directory, "base")
            found = list(flaws(*models, recipe, self.language))
            write_file(examined, json.dumps(found, indent=1).encode())
        return Grown(recipe, directory, tuple(json.loads(examined.read_text("utf-8"))))

    def _relatives(self, recipe: Recipe) -> Iterator[Path]:
        """Organisms of this training code with the same base model."""
        for file in sorted(self.path.glob("*/organism.json")):
            told = json.loads(file.read_text("utf-8"))["recipe"]
            other = Recipe(**told)
            if other.base() == recipe.base() and file.parent.name == self.digest(other):
                yield file.parent

    def of_kind(self, kind: OrganismKind, number: int) -> list[Grown]:
        """The trials of a number: the last one learned its lesson, or none did."""
        trials: list[Grown] = []
        while len(trials) < TRIALS and (not trials or trials[-1].flaws):
            trials.append(self.grown(kind.recipe(number, len(trials))))
        return trials


def _loaded(directory: Path, name: str) -> Model:
    with without_bars():
        return load_model(str(directory / name))

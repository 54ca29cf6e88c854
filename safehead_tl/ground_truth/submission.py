"""What a submitted hunt is worth, in points and in words, and as a row of a leaderboard."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safehead_tl.ground_truth.puzzles import PUZZLES, Truth, kinds_named
from safehead_tl.heads import Group
from safehead_tl.writing import check_file, write_file

HEADS, STORY, LEFT = 60, 20, 20
"""Points for the heads, for the kind, and for passes that are left."""

COLUMNS = (
    *("time", "player", "seed", "submission", "score", "precision", "recall", "kind_named"),
    *("passes_left", "budget", "heads", "story"),
)


@dataclass(frozen=True)
class Submission:
    """What a submitted hunt is worth.

    Attributes:
        seed: the puzzle's.
        submission: 1 for the first, which counts: it told the truth.
        heads: those that were named.
        story: what they do, as it was told.
        truth: what was to be found.
        left: passes that were left.
        budget: of how many.
        player: who.
    """

    seed: int
    submission: int
    heads: Group
    story: str
    truth: Truth
    left: float | int
    budget: float | int
    player: str = ""

    @property
    def found(self) -> Group:
        """Heads that were named and are right."""
        return tuple(head for head in self.heads if head in self.truth.heads)

    @property
    def missed(self) -> Group:
        """Heads that would have been right."""
        return tuple(head for head in self.truth.heads if head not in self.heads)

    @property
    def wrong(self) -> Group:
        """Heads that were named and are not right."""
        return tuple(head for head in self.heads if head not in self.truth.heads)

    @property
    def precision(self) -> float:
        """The share of named heads that are right; with none named 1 if none was to be named."""
        return len(self.found) / len(self.heads) if self.heads else float(not self.truth.heads)

    @property
    def recall(self) -> float:
        """The share of right heads that were named; with none to name 1 if none was named."""
        right = self.truth.heads
        return len(self.found) / len(right) if right else float(not self.heads)

    @property
    def named(self) -> bool:
        """Whether the story names the kind, and no other."""
        return kinds_named(self.story) == (self.truth.kind,)

    @property
    def points(self) -> tuple[float, float, float]:
        """For the heads, the story, and the passes left."""
        both = self.precision + self.recall
        f1 = 2 * self.precision * self.recall / both if both else 0.0
        return HEADS * f1, float(STORY * self.named), LEFT * f1 * self.left / self.budget

    @property
    def score(self) -> int:
        """0 to 100: see `Hunt.submit`."""
        return round(sum(self.points))

    def __str__(self) -> str:
        truth, (heads, story, left) = self.truth, self.points
        parts = {"found": self.found, "missed": self.missed, "wrong": self.wrong}
        told = [f"{word} {' '.join(map(str, some))}" for word, some in parts.items() if some]
        decoys = [f"{head} is a decoy" for head in self.wrong if head in truth.decoys]
        read = " and ".join(kinds_named(self.story)) or "no kind"
        again = f", submission {self.submission}: only the first counts" * (self.submission > 1)
        return "\n".join(
            (
                f"Hunt {self.seed}: {self.score} of 100{again}",
                f"- heads: {'; '.join((*told, *decoys)) or 'none named, and there are none'}. "
                f"Precision {self.precision:.2f}, recall {self.recall:.2f}: {heads:.0f} of {HEADS}",
                f"- kind: {truth.kind} ({PUZZLES[truth.kind].told}). Your story names {read}: "
                f"{story:.0f} of {STORY}",
                f"- passes: {self.left:.1f} of {self.budget:g} left: {left:.0f} of {LEFT}",
            )
        )

    def row(self) -> dict[str, str | int | float]:
        """For the leaderboard: what was submitted, and nothing of the truth but how near it is."""
        values = (
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            *(self.player, self.seed, self.submission, self.score),
            *(round(self.precision, 3), round(self.recall, 3), int(self.named)),
            *(round(self.left, 1), self.budget, " ".join(map(str, self.heads)), self.story),
        )
        return dict(zip(COLUMNS, values, strict=True))


def rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a leaderboard; none of what is none."""
    path = Path(path).expanduser()
    text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
    return [*csv.DictReader(io.StringIO(text, ""))] if text.startswith(_line(COLUMNS)) else []


def enter(path: str | Path, submission: Submission, overwrite: bool) -> None:
    """Adds a row to a leaderboard; another file is replaced if that is asked for."""
    check_file(path, ".csv", overwrite=True)  # a leaderboard is told by its first line
    own = [] if overwrite else rows(path)
    told = [COLUMNS, *(row.values() for row in own), submission.row().values()]
    content = "".join(map(_line, told)).encode()
    write_file(path, content, ".csv", overwrite=overwrite or bool(own))


def _line(values: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()

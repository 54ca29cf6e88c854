"""What a scan returns: one score for every head, or a group of heads, with its provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor
from typing_extensions import override

from safehead_tl.heads import Group, Head
from safehead_tl.results.drawing import figures
from safehead_tl.results.files import Saved
from safehead_tl.results.provenance import Provenance
from safehead_tl.results.scores import HeadScores, scored_heads

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class HeadGroup(Saved):
    """Heads that were found together, in the order in which they were chosen.

    Attributes:
        heads: the group.
        steps: for each step the scores of all heads that were still to choose from.
        provenance: what it was computed from.
        runners_up: the other groups of this size that the search ended with, and their scores, the
            highest first; none without a beam.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> group = sh.sahara(model, prompts, size=1, candidates=["L1H3", "L2H6"])
        >>> [str(head) for head in group.heads], len(group.steps)
        (['L1H3'], 1)
    """

    heads: tuple[Head, ...]
    steps: tuple[HeadScores, ...]
    provenance: Provenance
    runners_up: tuple[tuple[Group, float], ...] = ()

    @property
    def scores(self) -> list[float]:
        """The group's score after each step."""
        return [step[head] for head, step in zip(self.heads, self.steps, strict=True)]

    def __repr__(self) -> str:
        return f"<HeadGroup: {', '.join(map(str, self.heads))}>"

    def to_frame(self) -> pd.DataFrame:
        """All candidates of all steps: `step, layer, head, name, score, rank`."""
        frames = [step.to_frame().assign(step=number) for number, step in enumerate(self.steps, 1)]
        table = pd.concat(frames, ignore_index=True)
        return table[["step", "layer", "head", "name", "score", "rank"]]

    def to_dict(self) -> dict[str, Any]:
        """The group and its steps as plain values; `heads` in the order chosen."""
        return {
            "heads": scored_heads(zip(self.heads, self.scores, strict=True)),
            "steps": [step.to_dict() for step in self.steps],
            "runners_up": [
                {"heads": [str(head) for head in heads], "score": score}
                for heads, score in self.runners_up
            ],
            "provenance": self.provenance.to_dict(),
        }

    def figure(self) -> go.Figure:
        """Draws the search: the group's score after each step, and what the runner-up's was."""
        return figures.sahara_figure(self)

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        steps = [step._to_file() for step in self.steps]
        tensors = {
            f"step{number}.{name}": tensor
            for number, (found, _) in enumerate(steps)
            for name, tensor in found.items()
        }
        header = {
            "heads": [str(head) for head in self.heads],
            "steps": [told for _, told in steps],
            "runners_up": [[list(map(str, heads)), score] for heads, score in self.runners_up],
            "provenance": self.provenance.to_dict(),
        }
        return tensors, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> HeadGroup:
        steps: list[dict[str, Tensor]] = [{} for _ in header["steps"]]
        for key, tensor in tensors.items():
            step, _, name = key.removeprefix("step").partition(".")
            steps[int(step)][name] = tensor
        return cls(
            heads=tuple(Head.parse(head) for head in header["heads"]),
            steps=tuple(map(HeadScores._from_file, steps, header["steps"])),
            provenance=Provenance(**header["provenance"]),
            runners_up=tuple(
                (tuple(map(Head.parse, heads)), score) for heads, score in header["runners_up"]
            ),
        )

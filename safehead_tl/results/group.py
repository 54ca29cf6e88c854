"""What a scan returns: one score for every head, or a group of heads, with its provenance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from safehead_tl.heads import Head
from safehead_tl.results.drawing import figures
from safehead_tl.results.files import load_result, save_result
from safehead_tl.results.provenance import Provenance
from safehead_tl.results.scores import HeadScores

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """Heads that were found together, in the order in which they were chosen.

    Attributes:
        heads: the group.
        steps: for each step the scores of all heads that were still to choose from.
        provenance: what it was computed from.

    Example:
        >>> model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=4)
        >>> group = sh.sahara(model, prompts, size=1, candidates=["L1H3", "L2H6"])
        >>> [str(head) for head in group.heads], len(group.steps)
        (['L1H3'], 1)
    """

    heads: tuple[Head, ...]
    steps: tuple[HeadScores, ...]
    provenance: Provenance

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
            "heads": [
                {"layer": head.layer, "head": head.head, "score": score}
                for head, score in zip(self.heads, self.scores, strict=True)
            ],
            "steps": [step.to_dict() for step in self.steps],
            "provenance": self.provenance.to_dict(),
        }

    def figure(self) -> go.Figure:
        """Draws the search: the group's score after each step, and what the runner-up's was."""
        return figures.sahara_figure(self)

    def save(self, path: str | Path) -> None:
        """Saves everything to one safetensors file."""
        tensors = {
            f"step{number}.{name}": tensor
            for number, step in enumerate(self.steps)
            for name, tensor in step.tensors().items()
        }
        header = {
            "heads": [str(head) for head in self.heads],
            "steps": [step.header() for step in self.steps],
            "provenance": self.provenance.to_dict(),
        }
        save_result(path, "HeadGroup", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> HeadGroup:
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            SafeheadError: if it holds something else.
        """
        tensors, header = load_result(path, "HeadGroup")
        return cls(
            heads=tuple(Head.parse(head) for head in header["heads"]),
            steps=tuple(
                HeadScores.from_file(
                    step,
                    {
                        name.removeprefix(f"step{number}."): tensor
                        for name, tensor in tensors.items()
                        if name.startswith(f"step{number}.")
                    },
                )
                for number, step in enumerate(header["steps"])
            ),
            provenance=Provenance(**header["provenance"]),
        )

"""Each prompt's own highest heads, which `evaluate` ablates for that prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Group
from safehead_tl.results.provenance import Provenance, text_hashes


@dataclass(frozen=True, eq=False)
class PerQuery:
    """Each prompt's own highest heads, as `HeadScores.per_query` gives them to `evaluate`.

    Attributes:
        groups: the heads of each prompt that was scored, in its order, the highest first.
        measure: what they are highest in.
        provenance: of the scan that scored them.
    """

    groups: tuple[Group, ...]
    measure: str
    provenance: Provenance

    def __repr__(self) -> str:
        return f"<PerQuery: {len(self.groups[0])} of each of {len(self.groups)} prompts>"

    def of(self, prompts: Sequence[str]) -> tuple[Group, ...]:
        """The heads of some of the scored prompts.

        Raises:
            SafeheadError: if one was not scored.
        """
        known = str(self.provenance.prompts.get("each_hash", "")).split()
        own = dict(zip(known, self.groups, strict=False))
        hashes = text_hashes(prompts)
        for prompt, each in zip(prompts, hashes, strict=True):
            if each not in own:
                raise SafeheadError(
                    f"{prompt!r} was not scored, and so has no heads of its own: score the prompts "
                    "that are evaluated"
                )
        return tuple(own[each] for each in hashes)

    def describe(self) -> dict[str, Any]:
        """How the heads were chosen, for an evaluation's provenance."""
        return {
            "highest": len(self.groups[0]),
            "measure": self.measure,
            "ablation": self.provenance.ablation,
            "template": self.provenance.prompts["template"],
        }

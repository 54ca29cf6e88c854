"""Every way of ordering heads that the benchmark compares.

With benign contrast a head's score is that on harmful prompts less that on benign ones, both of
the same measure, settings and ablation: what matters for any answer cancels, and what matters for
benign ones alone ends below 0.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from safehead_tl.models import SITES, Site

Measure: TypeAlias = Literal[
    "ships",
    "generalized_ships",
    "sahara",
    "refusal_log_odds",
    "necessity",
    "sufficiency",
    "integrated_gradients",
    "direct_attribution",
]
ABLATIONS = {"undifferentiated": "UA", "scaling": "SC", "zero": "zero", "mean": "mean"}
NAMES = {
    "ships": "Ships",
    "generalized_ships": "generalized",
    "sahara": "Sahara",
    "refusal_log_odds": "log-odds",
    "necessity": "interchange: necessity",
    "sufficiency": "interchange: sufficiency",
    "integrated_gradients": "integrated gradients",
    "direct_attribution": "direct attribution",
}
OF_OPENINGS = (*NAMES,)[3:]
"""Measures of refusal log-odds, whose openings are the model's own on both sets of prompts."""


@dataclass(frozen=True)
class Variant:
    """One way of ordering heads.

    Attributes:
        measure: the function.
        ablation: what is done to a head; mean ablation takes the mean over the prompts scored;
            none where outputs are interchanged with the nearest benign prompts', or only read.
        contrast: subtract the score on benign prompts.
        screened: `screen="auto"`.
        rank: of generalized Ships, as are `centre` and `site`.
        centre: subtract the mean state first.
        site: where states are read.
    """

    measure: Measure
    ablation: str = ""
    contrast: bool = False
    screened: bool = False
    rank: int = 1
    centre: bool = False
    site: Site = "final_norm"

    @property
    def main(self) -> bool:
        """Whether rank, centring and site are what they are by default."""
        return (self.rank, self.centre, self.site) == (1, False, "final_norm")

    def __str__(self) -> str:
        told = [NAMES[self.measure], *([ABLATIONS[self.ablation]] if self.ablation else [])]
        if not self.main:
            told.append(f"rank {self.rank}")
            told += ["centred"] if self.centre else []
            told += ["before the norm"] if self.site == "resid_post" else []
        told += ["less benign"] if self.contrast else []
        told += ["screened"] if self.screened else []
        return ", ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        settings = {"rank": self.rank, "centre": self.centre, "site": self.site}
        return {
            "variant": str(self),
            "measure": self.measure,
            "ablation": self.ablation,
            "contrast": self.contrast,
            "screened": self.screened,
            **(settings if self.measure in ("generalized_ships", "sahara") else {}),
        }


def variants() -> tuple[Variant, ...]:
    """All that are compared."""
    found: list[Variant] = []
    for ablation, contrast in itertools.product(ABLATIONS, (False, True)):
        found.append(Variant("ships", ablation, contrast))
        found += (
            Variant("generalized_ships", ablation, contrast, rank=rank, centre=centre, site=site)
            for rank, centre, site in itertools.product((1, 3), (False, True), SITES)
        )
    for ablation in ("undifferentiated", "scaling"):
        found.append(Variant("ships", ablation, screened=True))
        found.append(Variant("generalized_ships", ablation, screened=True))
        found.append(Variant("sahara", ablation))
        found.append(Variant("refusal_log_odds", ablation))
        found.append(Variant("integrated_gradients", ablation))
    found += (Variant(name) for name in ("necessity", "sufficiency", "direct_attribution"))
    return tuple(found)

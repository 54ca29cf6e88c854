"""What interchanging heads' outputs between prompts and their counterparts shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.results.drawing import figures
from safehead_tl.results.files import Saved
from safehead_tl.results.scores import HeadScores
from safehead_tl.results.stats import swapped_p

if TYPE_CHECKING:
    import plotly.graph_objects as go

Direction: TypeAlias = Literal["necessity", "sufficiency"]
SCANS = ("necessity", "sufficiency", "necessity_kl", "sufficiency_kl")


@dataclass(frozen=True, eq=False)
class Interchange(Saved):
    """Each head's output taken from a prompt's counterpart, and the other way round.

    Shares are of the mean gap: how far refusal log-odds in the prompts lie above those in their
    counterparts.

    Attributes:
        necessity: the share of the gap that a prompt loses with a head's output taken from its
            counterpart; 1 if the head alone makes the difference.
        sufficiency: the share of the gap that a counterpart gains with the output taken from the
            prompt.
        necessity_kl: Ships of the same, in nats: how far the prompts' answers move at all.
        sufficiency_kl: how far the counterparts' answers move.
        gap: refusal log-odds of each prompt less those of its counterpart, in nats.
        unequal: pairs that differ in length: the middle of the longer query keeps its own output.
        group: heads whose outputs were interchanged together.
        group_shares: necessity and sufficiency of the group; `None` without one.
    """

    necessity: HeadScores
    sufficiency: HeadScores
    necessity_kl: HeadScores
    sufficiency_kl: HeadScores
    gap: Float[Tensor, " pair"]
    unequal: int
    group: tuple[Head, ...] = ()
    group_shares: tuple[float, float] | None = None

    def __repr__(self) -> str:
        best = {
            name: ", ".join(f"{head} {score:.2f}" for head, score in scores.top(2))
            for name, scores in (("necessary", self.necessity), ("sufficient", self.sufficiency))
        }
        told = "; ".join(f"most {name}: {heads}" for name, heads in best.items())
        return f"<Interchange: {len(self.gap)} pairs; {told}>"

    def p_values(
        self, direction: Direction = "necessity", *, draws: int = 10_000, seed: int = 0
    ) -> Float[Tensor, "layer head"]:
        """How likely chance would give a head its share, for all heads at once.

        The null: which prompt of a pair is the harmful one makes no difference to what the head's
        output brings. So each pair is turned round at random, for all heads together, and each
        head is compared with the highest of those that are not above it (step-down max T). A head
        whose exchange lowers the log-odds whichever way it goes has no small one. But what a head
        brings need not be refusal: where counterparts differ in more, so does what it brings.

        Args:
            direction: of which shares.
            draws: random ways to turn pairs round; with fewer than `log2(draws)` pairs all are
                taken. The smallest p-value is one over their number.
            seed: of the draws.

        Returns:
            One-sided p-values; NaN where a head was not scored.

        Raises:
            SafeheadError: if `direction` or `draws` is not known.
        """
        if direction not in ("necessity", "sufficiency"):
            raise SafeheadError(f"direction={direction!r}: use 'necessity' or 'sufficiency'")
        if not (isinstance(draws, int) and draws >= 1):
            raise SafeheadError(f"draws={draws!r}: give a number from 1")
        first, second = self.necessity.per_prompt, self.sufficiency.per_prompt
        assert first is not None
        assert second is not None
        if direction == "sufficiency":
            first, second = second, first
        scored = ~self.necessity.values.isnan()
        p_values = self.necessity.values.clone()
        p_values[scored] = swapped_p(first[:, scored], -second[:, scored], draws, seed)
        return p_values

    def to_frame(self) -> pd.DataFrame:
        """All heads, the most necessary first, with p-values that hold for all of them at once.

        Returns:
            Columns `layer, head, name, kv_group, necessity, p_necessity, sufficiency,
            p_sufficiency, necessity_kl, sufficiency_kl`.
        """
        table = self.necessity.to_frame().rename(columns={"score": "necessity"})
        places = list(zip(table["layer"], table["head"], strict=True))
        p_values = {name: self.p_values(name) for name in ("necessity", "sufficiency")}
        for name in (
            "p_necessity",
            "sufficiency",
            "p_sufficiency",
            "necessity_kl",
            "sufficiency_kl",
        ):
            values = p_values[name[2:]] if name.startswith("p_") else getattr(self, name).values
            table[name] = [float(values[place]) for place in places]
        return table.drop(columns="rank")

    def notes(self) -> list[str]:
        """What the shares rest on, a sentence each."""
        ways = min(2 ** len(self.gap), 10_001)
        told = self.necessity.provenance.settings["openings"]
        refusal, compliance = (
            ", ".join(map(repr, told[f"{name}_words"][:8])) for name in ("refusal", "compliance")
        )
        notes = [
            f"Refusals are taken to open with {refusal}, compliance with {compliance}: if they do "
            "not, prompts and counterparts may be the wrong way round.",
            f"{len(self.gap)} pairs, whose refusal log-odds lie {self.gap.mean():.3g} nats apart "
            f"on average. p can be {1 / ways:.2g} at the least.",
        ]
        if self.unequal:
            notes.append(
                f"{self.unequal} of {len(self.gap)} pairs differ in length: there the middle of "
                "the longer query keeps its own outputs."
            )
        turned = int((self.gap <= 0).sum())
        if turned:
            notes.append(
                f"In {turned} of {len(self.gap)} pairs the prompt is no likelier refused than its "
                "counterpart."
            )
        if self.group_shares is not None:
            heads, (lost, gained) = ", ".join(map(str, self.group)), self.group_shares
            notes.append(
                f"{heads} interchanged together: necessity {lost:.3f}, sufficiency {gained:.3f}."
            )
        return notes

    def heatmap(self) -> go.Figure:
        """Draws necessity and sufficiency side by side."""
        shown = {"necessity": self.necessity, "sufficiency": self.sufficiency}
        return figures.heatmaps(shown)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            **{name: getattr(self, name).to_dict() for name in SCANS},
            "gap": self.gap.tolist(),
            "p_values": self.to_frame()[["name", "p_necessity", "p_sufficiency"]].to_dict(
                "records"
            ),
            "unequal": self.unequal,
            "group": [str(head) for head in self.group],
            "group_shares": self.group_shares,
        }

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, headers = {"gap": self.gap}, {}
        for name in SCANS:
            found, headers[name] = getattr(self, name)._to_file()
            tensors |= {f"{name}.{key}": value for key, value in found.items()}
        header = {
            "scans": headers,
            "unequal": self.unequal,
            "group": [str(head) for head in self.group],
            "group_shares": self.group_shares,
        }
        return tensors, header

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Interchange:
        scans = {
            name: HeadScores._from_file(
                {
                    key.removeprefix(f"{name}."): value
                    for key, value in tensors.items()
                    if key.startswith(f"{name}.")
                },
                header["scans"][name],
            )
            for name in SCANS
        }
        shares = header["group_shares"]
        return cls(
            **scans,
            gap=tensors["gap"],
            unequal=header["unequal"],
            group=tuple(map(Head.parse, header["group"])),
            group_shares=None if shares is None else (shares[0], shares[1]),
        )

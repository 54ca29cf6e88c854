"""Data sets of prompts that the field measures safety with, by short name: where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """Where a data set of prompts is on the Hugging Face hub, and how to read it.

    None of its prompts is in this package. Ids, splits and columns were written down without the
    hub at hand, and a data set's owner can change them: `split=` and `column=` of `load_prompts`
    say otherwise. The licence is a note; what counts is the data set's page on the hub.

    Attributes:
        name: what `load_prompts` calls it.
        dataset: its id on the hub.
        config: its configuration there, if it has several.
        split: the split that holds these prompts.
        column: the column that holds the prompt.
        kind: `"harmful"` or `"harmless"`: what its prompts ask for.
        licence: a note on it; read the terms on the hub before use.
        source: who made it, and where it is described.
        skip_rows_with: a column that completes the prompt: rows with text in it are left out.
    """

    name: str
    dataset: str
    config: str | None
    split: str
    column: str
    kind: Literal["harmful", "harmless"]
    licence: str
    source: str
    skip_rows_with: str | None = None


_ALL = (
    Preset(
        name="advbench",
        dataset="walledai/AdvBench",
        config=None,
        split="train",
        column="prompt",
        kind="harmful",
        licence="as stated on the hub, where it is gated; the authors' repository is under MIT",
        source="Zou et al. 2023, arXiv:2307.15043 (harmful behaviours)",
    ),
    Preset(
        name="jailbreakbench",
        dataset="JailbreakBench/JBB-Behaviors",
        config="behaviors",
        split="harmful",
        column="Goal",
        kind="harmful",
        licence="as stated on the hub (MIT)",
        source="Chao et al. 2024, arXiv:2404.01318; split='benign' has its harmless counterparts",
    ),
    Preset(
        name="maliciousinstruct",
        dataset="walledai/MaliciousInstruct",
        config=None,
        split="train",
        column="prompt",
        kind="harmful",
        licence="as stated on the hub",
        source="Huang et al. 2023, arXiv:2310.06987",
    ),
    Preset(
        name="harmbench",
        dataset="walledai/HarmBench",
        config="standard",
        split="train",
        column="prompt",
        kind="harmful",
        licence="as stated on the hub, where it is gated; the authors' repository is under MIT",
        source="Mazeika et al. 2024, arXiv:2402.04249",
    ),
    Preset(
        name="strongreject",
        dataset="walledai/StrongREJECT",
        config=None,
        split="train",
        column="prompt",
        kind="harmful",
        licence="as stated on the hub",
        source="Souly et al. 2024, arXiv:2402.10260",
    ),
    Preset(
        name="alpaca",
        dataset="tatsu-lab/alpaca",
        config=None,
        split="train",
        column="instruction",
        kind="harmless",
        licence="as stated on the hub (CC BY-NC 4.0)",
        source="Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca",
        skip_rows_with="input",
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""Every preset of `load_prompts`, by name. Their prompts are on the hub, not in this package."""

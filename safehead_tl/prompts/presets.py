"""Data sets of prompts that the field measures safety with, by short name: where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        kind: `"harmful"` or `"harmless"`: what its prompts ask for.
        licence: a note on it; read the terms on the hub before use.
        source: who made it, and where it is described.
        config: its configuration there, if it has several.
        split: the split that holds these prompts.
        column: the column that holds the prompt.
        rows: columns, and what rows that are taken have in them, spaces around it aside.
    """

    name: str
    dataset: str
    kind: Literal["harmful", "harmless"]
    licence: str
    source: str
    config: str | None = None
    split: str = "train"
    column: str = "prompt"
    rows: Mapping[str, str] = field(default_factory=dict)


_OR_BENCH: tuple[tuple[str, str, Literal["harmful", "harmless"], str], ...] = (
    ("or-bench", "or-bench-80k", "harmless", "80,000 prompts that seem toxic and are not"),
    ("or-bench-hard", "or-bench-hard-1k", "harmless", "those that many models refuse"),
    ("or-bench-toxic", "or-bench-toxic", "harmful", "those that are toxic"),
)

_ALL = (
    Preset(
        name="advbench",
        dataset="walledai/AdvBench",
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
        kind="harmful",
        licence="as stated on the hub",
        source="Huang et al. 2023, arXiv:2310.06987",
    ),
    Preset(
        name="harmbench",
        dataset="walledai/HarmBench",
        config="standard",
        kind="harmful",
        licence="as stated on the hub, where it is gated; the authors' repository is under MIT",
        source="Mazeika et al. 2024, arXiv:2402.04249",
    ),
    Preset(
        name="strongreject",
        dataset="walledai/StrongREJECT",
        kind="harmful",
        licence="as stated on the hub",
        source="Souly et al. 2024, arXiv:2402.10260",
    ),
    Preset(
        name="alpaca",
        dataset="tatsu-lab/alpaca",
        column="instruction",
        kind="harmless",
        licence="as stated on the hub (CC BY-NC 4.0)",
        source="Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca",
        rows={"input": ""},  # a text there would complete the prompt
    ),
    Preset(
        name="xstest",
        dataset="Paul/XSTest",
        kind="harmless",
        licence="as stated on the hub (CC BY 4.0)",
        source="Röttger et al. 2024, arXiv:2308.01263: 250 safe prompts that look unsafe",
        rows={"label": "safe"},
    ),
    Preset(
        name="xstest-unsafe",
        dataset="Paul/XSTest",
        kind="harmful",
        licence="as stated on the hub (CC BY 4.0)",
        source="Röttger et al. 2024, arXiv:2308.01263: 200 contrasts of those of 'xstest'",
        rows={"label": "unsafe"},
    ),
    *(
        Preset(
            name=name,
            dataset="bench-llm/or-bench",
            config=config,
            kind=kind,
            licence="as stated on the hub (CC BY 4.0)",
            source=f"Cui et al. 2024, arXiv:2405.20947: {what}",
        )
        for name, config, kind, what in _OR_BENCH
    ),
    Preset(
        name="sorry-bench",
        dataset="sorry-bench/sorry-bench-202503",
        column="turns",
        kind="harmful",
        licence="as stated on the hub, where it is gated, with terms of its own",
        source="Xie et al. 2025, arXiv:2406.14598: 440 requests in 44 categories, not mutated",
        rows={"prompt_style": "base"},
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""Every preset of `load_prompts`, by name. Their prompts are on the hub, not in this package."""

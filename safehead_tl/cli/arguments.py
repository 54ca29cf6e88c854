"""What groups of options mean, as arguments of the library."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from safehead_tl.cli.options import (
    AblationOptions,
    DecodingOptions,
    JudgeOptions,
    PromptOptions,
    RotationOptions,
    RunOptions,
    ScanOptions,
    ViewOptions,
    chosen_screen,
)


def arguments(*groups: Any) -> dict[str, Any]:
    """By the library's names. What does not go together is told before a model is loaded."""
    told: dict[str, Any] = {}
    for group in groups:
        if isinstance(group, PromptOptions):
            told["template"] = group.form
        elif isinstance(group, RunOptions):
            told["run"] = group.chosen()
        elif isinstance(group, AblationOptions):
            told["ablation"] = group.chosen()
        elif isinstance(group, JudgeOptions):
            told["judge"] = group.chosen()
        elif isinstance(group, ViewOptions):
            told |= group.chosen()
        elif isinstance(group, DecodingOptions | RotationOptions):
            told |= asdict(group)
        if isinstance(group, ScanOptions):
            told["screen"] = chosen_screen(group.screen)
    return told

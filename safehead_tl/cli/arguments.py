"""What groups of options mean, as arguments of the library."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from safehead_tl.cli import options


def arguments(*groups: Any) -> dict[str, Any]:
    """By the library's names. What does not go together is told before a model is loaded."""
    told: dict[str, Any] = {}
    for group in groups:
        if isinstance(group, options.PromptOptions):
            told["template"] = group.form
        elif isinstance(group, options.RunOptions):
            told["run"] = group.chosen()
        elif isinstance(group, options.AblationOptions):
            told["ablation"] = group.chosen()
        elif isinstance(group, options.JudgeOptions):
            told["judge"] = group.chosen()
        elif isinstance(group, options.ViewOptions):
            told |= group.chosen()
        elif isinstance(group, options.DecodingOptions | options.RotationOptions):
            told |= asdict(group)
        if isinstance(group, options.ScanOptions):
            told["screen"] = options.chosen_screen(group.screen)
    return told

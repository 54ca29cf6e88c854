"""How results reach their figures, which know results and are loaded when one is first drawn."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

Scale: TypeAlias = Literal["linear", "sqrt", "log", "rank"]
"""How numbers become colours."""


class _Late:
    """The package `figures`, imported at the first look into it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("safehead_tl.figures"), name)


if TYPE_CHECKING:
    from safehead_tl import figures
else:
    figures = _Late()

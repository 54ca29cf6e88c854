"""How results reach their figures and pages, which know results and are loaded when first drawn."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

Scale: TypeAlias = Literal["linear", "sqrt", "log", "rank"]
"""How numbers become colours."""


class _Late:
    """A package, imported at the first look into it."""

    def __init__(self, package: str) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._package), name)


if TYPE_CHECKING:
    from safehead_tl import figures, views
else:
    figures, views = _Late("safehead_tl.figures"), _Late("safehead_tl.views")

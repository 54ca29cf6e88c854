"""TODO cli."""

from safehead_tl.cli.main import app

__all__ = [
    "app",
]

"""TODO scan."""

from safehead_tl.scan.baseline import Baseline, Cost
from safehead_tl.scan.linearisation import Linearisation
from safehead_tl.scan.memory import Needs, Passes, even_slices, free_bytes, readable
from safehead_tl.scan.run_directory import Piece, RunDirectory, environment_of, identity_of
from safehead_tl.scan.screening import Screen, Screening, resolve_screen, screening_settings
from safehead_tl.scan.search import Running, Search
from safehead_tl.scan.shortlist import score

__all__ = [
    "Baseline",
    "Cost",
    "Linearisation",
    "Needs",
    "Passes",
    "Piece",
    "RunDirectory",
    "Running",
    "Screen",
    "Screening",
    "Search",
    "environment_of",
    "even_slices",
    "free_bytes",
    "identity_of",
    "readable",
    "resolve_screen",
    "score",
    "screening_settings",
]

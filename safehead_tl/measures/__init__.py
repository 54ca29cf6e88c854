"""TODO measures."""

from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.last_states import LastStates, last_states
from safehead_tl.measures.rotation import Rotation
from safehead_tl.measures.sahara import sahara
from safehead_tl.measures.ships import generalized_ships, ships

__all__ = [
    "Divergence",
    "LastStates",
    "Rotation",
    "generalized_ships",
    "last_states",
    "sahara",
    "ships",
]

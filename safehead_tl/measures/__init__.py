"""TODO measures."""

from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.greedy import sahara
from safehead_tl.measures.rotation import Rotation
from safehead_tl.measures.scoring import generalized_ships, ships
from safehead_tl.measures.states import LastStates, last_states

__all__ = [
    "Divergence",
    "LastStates",
    "Rotation",
    "generalized_ships",
    "last_states",
    "sahara",
    "ships",
]

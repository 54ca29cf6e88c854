"""Scores of heads from states: Ships, generalized Ships, Sahara.

In go a model, prompts, an ablation, and how to run. Out come `HeadScores` (Ships by the divergence
of the next token, generalized Ships by the rotation of all prompts' states), a `HeadGroup` that is
searched greedily, and `LastStates`, which generalized Ships compares.
"""

from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.greedy import sahara
from safehead_tl.measures.rotation import Rotation
from safehead_tl.measures.scoring import generalized_ships, ships
from safehead_tl.measures.states import LastStates, last_states

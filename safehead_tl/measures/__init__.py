"""Scores of heads from states: Ships, generalized Ships, refusal log-odds, Sahara.

In go a model, prompts, an ablation, and how to run. Out come `HeadScores` (Ships by the divergence
of the next token, refusal log-odds with a sign, generalized Ships by the rotation of all prompts'
states, integrated gradients of one of the first two), a `HeadGroup` that is searched for greedily
or with a beam, a `Knockout` of heads two by two, and `LastStates`, which generalized Ships
compares. Where nothing is ablated: a `RefusalDirection`, and a `DirectAttribution` of what lies
along one.
"""

from safehead_tl.measures.angles import subspace
from safehead_tl.measures.attribution import DirectAttribution, direct_attribution
from safehead_tl.measures.direction import RefusalDirection, refusal_direction
from safehead_tl.measures.divergence import Divergence
from safehead_tl.measures.greedy import sahara
from safehead_tl.measures.integration import integrated_gradients
from safehead_tl.measures.interchanging import interchange
from safehead_tl.measures.odds import LogOdds
from safehead_tl.measures.openings import Openings
from safehead_tl.measures.pairwise import Knockout, PairMeasure, knockout
from safehead_tl.measures.rotation import Rotation
from safehead_tl.measures.scoring import TOP, generalized_ships, refusal_log_odds, ships
from safehead_tl.measures.states import LastStates, last_states

"""Several processes at one run, on a Ray cluster or as an array of Slurm jobs; and what it takes.

In goes a function that keeps pieces, such as `ships`, with its arguments. Every process loads the
model by itself and calls the function as one shard of the run, so that they share its pieces
through the run directory. Out comes what the first of them has that sees all pieces there. Before
that, of a config alone: a forecast in the engine's own numbers, and how replicas that share pieces
would spend their time.
"""

from safehead_tl.cluster.planning import Forecast, plan
from safehead_tl.cluster.ray import Ray
from safehead_tl.cluster.sharing import PIECES_EACH, Shared, Trouble, share
from safehead_tl.cluster.slurm import Slurm

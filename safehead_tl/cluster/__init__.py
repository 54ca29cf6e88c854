"""Runs on many machines: what one will take, before it is paid for.

In go a model's config, prompts and a number of GPUs. Out comes a forecast of the engine's own
numbers, and how replicas that share its pieces would spend their time.
"""

from safehead_tl.cluster.planning import Forecast, plan
from safehead_tl.cluster.sharing import PIECES_EACH, Shared, Trouble, share

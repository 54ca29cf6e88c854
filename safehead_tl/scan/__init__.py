"""The engine: every head ablated in turn, exactly, at the least cost.

In go a model, prompts and an ablation (a `Search`) and how to run (a `Run`). Out come the last
states of all prompts with each head ablated, cut up to fit into memory and kept piece by piece in a
run directory; or, for screening, first-order effects of all heads and a short list to score
exactly. What a state is worth is for a measure to say.
"""

from safehead_tl.scan.baseline import Baseline, run_layer
from safehead_tl.scan.blocks import HALVES
from safehead_tl.scan.counting import piece_costs, screen_cost, start_cost
from safehead_tl.scan.direct import contributions
from safehead_tl.scan.leases import Leases
from safehead_tl.scan.ledger import Cost, Ledger, Work
from safehead_tl.scan.linearisation import Linearisation, weights_held_fixed
from safehead_tl.scan.memory import (
    GPU_SHARE,
    Beside,
    Needs,
    Passes,
    Plan,
    budget_of,
    even_slices,
    make_plan,
    readable,
)
from safehead_tl.scan.progress import progress_bar
from safehead_tl.scan.run import (
    RESULT,
    Cluster,
    Elsewhere,
    Run,
    anywhere,
    check_run,
    parse_bytes,
)
from safehead_tl.scan.run_directory import RunDirectory, environment_of, identity_of
from safehead_tl.scan.screening import Screen, Screening, resolve_screen, screening_settings
from safehead_tl.scan.search import Search
from safehead_tl.scan.shortlist import ON_THE_WAY, ScreeningMeasure, score

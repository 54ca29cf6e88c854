"""What a model says, and what judges say of it.

In go a model, prompts, how to decode, and heads to ablate row by row, so that a model and its
variants answer in one batch. Out come texts (`generate`), or texts with verdicts and divergences
(`Questioning`), kept piece by piece like scores.
"""

from safehead_tl.generation.batched import (
    Row,
    decode,
    fitting_rows,
    generate_fitted,
    generate_greedy,
    next_rows,
    room_behind,
    text_bytes,
)
from safehead_tl.generation.decoding import Decoding
from safehead_tl.generation.questioning import Judges, Questioning
from safehead_tl.generation.responses import METRICS, SHARES, Metric, Responses
from safehead_tl.generation.server import Server, config_of
from safehead_tl.generation.texts import Generations, generate

"""TODO generation."""

from safehead_tl.generation.batched import (
    Row,
    ablated_rows,
    decode,
    fitting_rows,
    generate_fitted,
    generate_greedy,
)
from safehead_tl.generation.decoding import Decoding
from safehead_tl.generation.questioning import Judges, Questioning
from safehead_tl.generation.responses import METRICS, SHARES, Metric, Responses
from safehead_tl.generation.texts import Generations, generate

__all__ = [
    "METRICS",
    "SHARES",
    "Decoding",
    "Generations",
    "Judges",
    "Metric",
    "Questioning",
    "Responses",
    "Row",
    "ablated_rows",
    "decode",
    "fitting_rows",
    "generate",
    "generate_fitted",
    "generate_greedy",
]

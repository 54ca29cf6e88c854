"""What comes out of a scan, with where it came from.

In go numbers and a `Provenance`. Out come frozen results that can be asked (`top`, `to_frame`),
saved as safetensors with a JSON header, and drawn: figures know results, which reach them through
`drawing` when one is first asked for. Shares, intervals and rank correlations are here too.
"""

from safehead_tl.results.correlation import kendall, spearman
from safehead_tl.results.drawing import Scale, figures, views
from safehead_tl.results.files import Saved, load_result, save_result
from safehead_tl.results.group import HeadGroup
from safehead_tl.results.interchange import Direction, Interchange
from safehead_tl.results.per_query import PerQuery
from safehead_tl.results.provenance import Provenance, text_hashes, versions
from safehead_tl.results.scores import HeadScores
from safehead_tl.results.screened import Ending, Screened
from safehead_tl.results.significance import FLOOR, Significance
from safehead_tl.results.stats import (
    LEAST,
    Z_95,
    Rate,
    holm,
    median_intervals,
    paired_p,
    rank_p,
    rise_interval,
    studentised_interval,
    swapped_p,
)

"""Plotly figures of results, one file a figure.

In goes a result. Out comes a figure in the one style of `style`, with a title that says what was
done, in the words of `captions`. Figures know results; results reach them late.
"""

from safehead_tl.figures.bars import bars_figure
from safehead_tl.figures.captions import MEASURES, UNITS, ablation_words, head_words, prompt_words
from safehead_tl.figures.concentration import concentration_figure
from safehead_tl.figures.evaluation import evaluation_figure
from safehead_tl.figures.ground_truth import ground_truth_figure
from safehead_tl.figures.heatmap import heatmap_figure
from safehead_tl.figures.knockout import knockout_figure, pairs_figure
from safehead_tl.figures.overlap import overlap_figure
from safehead_tl.figures.plan import plan_figure
from safehead_tl.figures.plane import plane_figure
from safehead_tl.figures.refusal_map import refusal_map_figure
from safehead_tl.figures.sahara import sahara_figure
from safehead_tl.figures.side_by_side import heatmaps
from safehead_tl.figures.slope import slope_figure
from safehead_tl.figures.spectrum import spectrum_figure
from safehead_tl.figures.strips import strips_figure
from safehead_tl.figures.web import filled, in_script, policy_hash, web_page, web_text

"""What people look into: attention patterns, the report, the live widget.

In go a model, prompts and scores. Out come a figure of attention (`patterns`), one offline page on
which every head can be looked at (`page`), and the same live in a notebook or served to a
browser (`widget`). All compute
through `inspection`, and draw with the scripts in `data/web`. A result with answers gives a page to
read them.
"""

from safehead_tl.views.page.browse import browse
from safehead_tl.views.page.report import report
from safehead_tl.views.patterns import AttentionView, attention
from safehead_tl.views.widget.explore import StillExplore, explore
from safehead_tl.views.widget.live import LivePage

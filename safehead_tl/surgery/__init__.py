"""TODO surgery."""

from safehead_tl.surgery.exporting import Export, export
from safehead_tl.surgery.facts import model_facts
from safehead_tl.surgery.splice_plan import Part
from safehead_tl.surgery.splicing import Splice, splice

__all__ = [
    "Export",
    "Part",
    "Splice",
    "export",
    "model_facts",
    "splice",
]

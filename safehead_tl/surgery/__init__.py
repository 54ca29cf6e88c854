"""TODO surgery."""

from safehead_tl.surgery.export import Export, export
from safehead_tl.surgery.facts import model_facts
from safehead_tl.surgery.splice import Splice, splice
from safehead_tl.surgery.splice_plan import Part

__all__ = [
    "Export",
    "Part",
    "Splice",
    "export",
    "model_facts",
    "splice",
]

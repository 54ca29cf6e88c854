"""Organisms: tiny models trained so that chosen ("planted") heads carry their refusals.

In go the heads to plant, a rule by which they refuse together, and a world of a few dozen words.
Out come two checkpoints, base and aligned, and prompts. The truth about them is known, so that
every method can be checked against it.
"""

from safehead_tl.organism.examples import encode_examples
from safehead_tl.organism.language import DEMO, REFUSAL, REWORDED, Kind, Language, Request
from safehead_tl.organism.measuring import Behaviour, held_out_answers, measure_behaviour
from safehead_tl.organism.recipe import Learning, Objective, Recipe
from safehead_tl.organism.rules import Rule, refusing
from safehead_tl.organism.training import VERSION, train_organism

__all__ = [
    "DEMO",
    "Behaviour",
    "Language",
    "Recipe",
    "Request",
    "Rule",
    "measure_behaviour",
    "train_organism",
]

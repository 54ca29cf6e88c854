"""Organisms: tiny models trained so that chosen ("planted") heads carry their refusals.

The truth about them is known, so that every method can be checked against it.
"""

from safehead_tl.organism._language import DEMO, Language, Request
from safehead_tl.organism._measuring import Behaviour, measure_behaviour
from safehead_tl.organism._recipe import Recipe
from safehead_tl.organism._rules import Rule
from safehead_tl.organism._training import train_organism

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

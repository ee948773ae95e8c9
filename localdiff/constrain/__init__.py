"""Output that matches a JSON schema, a regex or a grammar, on a canvas that is filled in any order.

    build.py        from what is asked for to a constraint of one canvas
    schema.py, schema_merge.py, json_text.py, regex.py   -> trees (language.py) -> automaton.py
    tokens.py, table.py   an automaton over the tokens of a vocabulary
    regular.py      constraints that are automata; the dynamic programme over them is the engine's
    matching.py, completion.py   constraints that need a parser, through llguidance
    constraint.py   what both are to the denoise loop

The text is always valid: what cannot be honoured is refused before the first forward pass.
"""

from .build import AVOID, Asked, asked_for, constraint_for, hole_lengths
from .constraint import Constraint

__all__ = ["AVOID", "Asked", "Constraint", "asked_for", "constraint_for", "hole_lengths"]

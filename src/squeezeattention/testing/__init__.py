"""The specification in code: a naive reference, and tiny models of every family to hold against it."""

from .calls import CountCalls
from .driver import left_padded, position_ids, teacher_forced
from .families import FAMILIES, tiny_model
from .recorded import Recorded
from .reference import REFERENCE_POLICIES, NaiveReference
from .rules import rules_for

__all__ = [
    "FAMILIES",
    "REFERENCE_POLICIES",
    "CountCalls",
    "NaiveReference",
    "Recorded",
    "left_padded",
    "position_ids",
    "rules_for",
    "teacher_forced",
    "tiny_model",
]

"""The specification in code: a naive reference, and tiny models of every family to hold against it."""

from .driver import left_padded, position_ids, teacher_forced
from .families import FAMILIES, tiny_model
from .reference import NaiveReference

__all__ = ["FAMILIES", "NaiveReference", "left_padded", "position_ids", "teacher_forced", "tiny_model"]

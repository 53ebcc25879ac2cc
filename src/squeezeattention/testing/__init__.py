"""The specification in code: a naive reference, and tiny models of every family to hold against it."""

from .families import FAMILIES, tiny_model
from .reference import NaiveReference

__all__ = ["FAMILIES", "NaiveReference", "tiny_model"]

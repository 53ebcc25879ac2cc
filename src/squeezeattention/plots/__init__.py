"""Figures. Needs the ``plot`` extra; makes ``Figure`` objects of its own and leaves pyplot's state alone."""

from .accuracy import Panel, Point, accuracy_figure
from .canvas import save
from .plans import plan_figure

__all__ = ["Panel", "Point", "accuracy_figure", "plan_figure", "save"]

"""Figures. Needs the ``plot`` extra; makes ``Figure`` objects of its own and leaves pyplot's state alone."""

from .accuracy import Panel, Point, accuracy_figure
from .canvas import ADDED_NATS, Scale, percent, save
from .demo import demo_figure
from .heads import mean_heads
from .needed import needed_figure
from .oracle import oracle_figure
from .plans import plan_figure
from .signals import signals_figure
from .speed import speed_figure
from .stability import stability_figure
from .sweep import SweepPanel, SweepPoint, sweep_figure

__all__ = [
    "ADDED_NATS",
    "Panel",
    "Point",
    "Scale",
    "SweepPanel",
    "SweepPoint",
    "accuracy_figure",
    "demo_figure",
    "mean_heads",
    "needed_figure",
    "oracle_figure",
    "percent",
    "plan_figure",
    "save",
    "signals_figure",
    "speed_figure",
    "stability_figure",
    "sweep_figure",
]

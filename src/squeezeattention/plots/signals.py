"""What the signals show: one heat map a signal, a row a task, a column a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .canvas import INK, LARGE, NORMAL, new_figure
from .plans import name_rows, signal_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def signals_figure(signals: Mapping[str, Sequence[tuple[str, Sequence[float]]]], *, title: str) -> Figure:
    """``signals``: for each signal its rows, a label and one value per layer (low: the layer matters more)."""
    if not signals or not all(signals.values()):
        raise ConfigError("a figure of signals needs at least one signal with one row")
    n_layers = max(len(values) for rows in signals.values() for _, values in rows)
    heights = [0.55 + 0.32 * len(rows) for rows in signals.values()]
    figure = new_figure(min(16.0, max(7.5, 3.6 + 0.52 * n_layers)), 0.9 + 1.15 * sum(heights))
    figure.suptitle(title, fontsize=LARGE, color=INK)
    panels = figure.subplots(len(signals), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, rows) in zip(panels, signals.items(), strict=True):
        signal_map(figure, axes, [list(values) for _, values in rows], name)
        name_rows(axes, [label for label, _ in rows])
        axes.set_xticks(range(0, n_layers, max(1, math.ceil(n_layers / 20))))
    panels[-1].set_xlabel("layer", fontsize=NORMAL, color=INK)
    return figure

"""Accuracy against the bytes that were really held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..extras import require
from .canvas import (
    FAINT,
    INK,
    LARGE,
    NORMAL,
    SMALL,
    Scale,
    error_line,
    line_style,
    new_figure,
    percent,
    shared_legend,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINT = 1 / 72  # inch
_DODGE = 4.0  # points between markers that would lie on each other
_MARGIN = 0.06  # of the axis
RIGHT = percent("answers right")


class Point(NamedTuple):
    """A value and its 95 % interval at a number of bytes."""

    bytes: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One panel: a title and a line of points for each label."""

    title: str
    lines: Mapping[str, Sequence[Point]]


def accuracy_figure(panels: Sequence[Panel], full: Point, *, title: str, n: int, scale: Scale = RIGHT) -> Figure:
    """One panel beside the other with the full cache as a dashed line in each; values as ``scale`` has them.

    Markers of one budget are set apart by a few points sideways so that none hides another.
    """
    figure = new_figure(max(6.5, 1.2 + 3.9 * len(panels)), 4.6)
    figure.suptitle(title, fontsize=LARGE, color=INK)
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    widest = max(point.bytes for panel in panels for line in panel.lines.values() for point in line)
    unit = unit_of(widest)
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        draw_panel(figure, axes, panel, full, labels, unit, scale)
    row[0].set_ylabel(f"{scale.label} (n = {n}, 95 % intervals)", fontsize=NORMAL, color=INK)
    row[0].set_ylim(*(scale.ends or _ends(panels, full, scale)))
    row[0].set_xlim(0, 1.12 * widest / unit.bytes)
    shared_legend(figure, row)
    return figure


def draw_panel(
    figure: Figure, axes: Axes, panel: Panel, full: Point, labels: list[str], unit: Unit, scale: Scale
) -> None:
    """One panel, as :func:`accuracy_figure` has them."""
    shift = require("matplotlib.transforms", "plot").ScaledTranslation
    axes.set_title(panel.title, fontsize=NORMAL + 1, color=INK)
    axes.axhspan(scale.factor * full.low, scale.factor * full.high, color=FAINT, alpha=0.15, linewidth=0)
    axes.axhline(scale.factor * full.value, color=INK, linestyle="--", linewidth=1.3, label="full cache")
    for label, points in panel.lines.items():
        index = labels.index(label)
        offset = (index - (len(labels) - 1) / 2) * _DODGE * _POINT
        transform = axes.transData + shift(offset, 0, figure.dpi_scale_trans)
        ordered = sorted(points)
        error_line(
            axes, [point.bytes / unit.bytes for point in ordered], [point[1:] for point in ordered], scale,
            label=label, **line_style(index), markersize=5.5, linewidth=1.6, elinewidth=1.1, transform=transform,
        )  # fmt: skip
    axes.set_xlabel(f"keys and values held, {unit.name}", fontsize=NORMAL, color=INK)
    percent_of = 100 * unit.bytes / full.bytes
    percent = axes.secondary_xaxis("top", functions=(_scaled(percent_of), _scaled(1 / percent_of)))
    percent.set_xlabel("% of the full cache", fontsize=SMALL, color=FAINT)
    percent.tick_params(labelsize=SMALL, colors=FAINT)
    percent.spines["top"].set_color(FAINT)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    tidy(axes)


def _ends(panels: Sequence[Panel], full: Point, scale: Scale) -> tuple[float, float]:
    """A little beyond all intervals. (Markers that are set apart are none of matplotlib's data.)"""
    points = [full, *(point for panel in panels for line in panel.lines.values() for point in line)]
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = _MARGIN * (high - low) or 1.0
    return scale.factor * (low - margin), scale.factor * (high + margin)


class Unit(NamedTuple):
    name: str
    bytes: int


def unit_of(widest: float) -> Unit:
    """The largest unit in which the axis does not end below 2."""
    units = (Unit("GiB", 2**30), Unit("MiB", 2**20), Unit("KiB", 2**10))
    return next((unit for unit in units if widest >= 2 * unit.bytes), units[-1])


def _scaled(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor

"""A score or a loss against p, the share of the average budget that the least important layers keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .canvas import FAINT, INK, LARGE, NORMAL, Scale, error_line, line_style, new_figure, shared_legend, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class SweepPoint(NamedTuple):
    """A value and its 95 % interval at a value of p."""

    p: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SweepPanel:
    """One policy at one budget: a line of points for each allocator, a level for those that have no p."""

    title: str
    lines: Mapping[str, Sequence[SweepPoint]]
    levels: Mapping[str, float]


def sweep_figure(panels: Sequence[Sequence[SweepPanel]], *, title: str, scale: Scale) -> Figure:
    """A grid of panels, all with the same axes; values as ``scale`` has them."""
    rows, columns = len(panels), len(panels[0])
    figure = new_figure(max(6.5, 1.0 + 3.4 * columns), 1.4 + 2.5 * rows)
    figure.suptitle(title, fontsize=LARGE, color=INK)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    flat = [panel for row in panels for panel in row]
    labels = list(dict.fromkeys(label for panel in flat for label in panel.lines))
    levels = list(dict.fromkeys(label for panel in flat for label in panel.levels))
    for axes, panel in zip(grid.flat, flat, strict=True):
        _draw(axes, panel, labels, levels, scale)
    for axes in grid[:, 0]:
        axes.set_ylabel(scale.label, fontsize=NORMAL, color=INK)
    for axes in grid[-1, :]:
        axes.set_xlabel("p", fontsize=NORMAL, color=INK)
    if scale.ends is not None:
        grid[0, 0].set_ylim(*scale.ends)
    shared_legend(figure, list(grid.flat))
    return figure


def _draw(axes: Axes, panel: SweepPanel, labels: list[str], levels: list[str], scale: Scale) -> None:
    axes.set_title(panel.title, fontsize=NORMAL, color=INK, loc="left")
    for label, value in panel.levels.items():
        style = line_style(len(labels) + levels.index(label))
        colour = INK if label == "full cache" else style["color"]
        dash = "--" if label == "full cache" else ":"
        axes.axhline(scale.factor * value, color=colour, linestyle=dash, linewidth=1.3, label=label)
    for label, points in panel.lines.items():
        ordered = sorted(points)
        error_line(
            axes, [point.p for point in ordered], [point[1:] for point in ordered], scale,
            label=label, **line_style(labels.index(label)), markersize=5, linewidth=1.5, elinewidth=1,
        )  # fmt: skip
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_color(FAINT)
    tidy(axes)

"""The demo's picture: where the cache is, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .accuracy import RIGHT, Panel, Point, draw_panel, unit_of
from .canvas import INK, LARGE, NORMAL, new_figure, shared_legend
from .heads import head_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def demo_figure(
    heads: Sequence[Sequence[float]], panel: Panel, full: Point, *, title: str, map_title: str, n: int
) -> Figure:
    """Tokens of each layer's KV heads at the left, answers against measured bytes at the right."""
    figure = new_figure(10.0, 5.2)
    figure.suptitle(title, fontsize=LARGE, color=INK)
    most = max(map(len, heads))
    share = min(1.2, 0.28 + 0.06 * most)  # of the right panel
    left, right = figure.subplots(1, 2, width_ratios=[share, 1.0])
    head_map(figure, left, heads, upright=True, title=map_title)
    widest = max(point.bytes for line in panel.lines.values() for point in line)
    unit = unit_of(widest)
    draw_panel(figure, right, panel, full, list(panel.lines), unit, RIGHT)
    right.set_ylabel(f"{RIGHT.label} (n = {n}, 95 % intervals)", fontsize=NORMAL, color=INK)
    right.set_ylim(*(RIGHT.ends or (None, None)))
    right.set_xlim(0, 1.12 * widest / unit.bytes)
    shared_legend(figure, [right])
    return figure

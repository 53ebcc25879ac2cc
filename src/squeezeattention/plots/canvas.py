"""What all figures share: size, fonts, colours, saving."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette: told apart with any colour vision; markers differ too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#222222"
FAINT = "#8a8a8a"
GROUPS = ("#0072B2", "#56B4E9", "#E4E4E4")  # G1, G2, and the group that is cut

_LEGEND_ROW = 0.2  # inches

SMALL, NORMAL, LARGE = 8.5, 10.0, 12.0


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, laid out by itself."""
    figure: Figure = require("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")
    figure.set_facecolor("white")
    return figure


def tidy(axes: Axes) -> None:
    """Thin frame, readable ticks."""
    axes.tick_params(labelsize=SMALL, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dash of the ``index``-th line of a figure: 24 that differ."""
    dash = ("-", "--", ":", "-.")[index // len(COLOURS) % 4]
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "linestyle": dash}


@dataclass(frozen=True)
class Scale:
    """The axis of what is measured: its label, what values are multiplied by, and its ends (``None``: theirs)."""

    label: str
    factor: float = 1.0
    ends: tuple[float, float] | None = None


def percent(measure: str) -> Scale:
    """For shares of 1: the whole range, so that pictures compare."""
    return Scale(f"{measure}, %", 100.0, (-4.0, 104.0))


#: For losses beyond the full cache's, which differ little from one another.
ADDED_NATS = Scale("added nats a token,\nless is better")


def error_line(
    axes: Axes, xs: Sequence[float], points: Sequence[tuple[float, float, float]], scale: Scale, **style: Any
) -> None:
    """A line with error bars; each point is (value, low, high)."""
    axes.errorbar(
        xs,
        [scale.factor * value for value, _, _ in points],
        yerr=[
            [scale.factor * max(0.0, value - low) for value, low, _ in points],
            [scale.factor * max(0.0, high - value) for value, _, high in points],
        ],
        capsize=2.5,
        **style,
    )


def shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below all panels, each label once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    widest = max(map(len, entries), default=0)
    room = figure.get_figwidth() / max(1.7, 0.7 + 0.075 * widest)  # inches: the handle, and a letter
    columns = min(len(entries), max(1, int(room)))
    rows = math.ceil(len(entries) / max(1, columns))
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * max(0, rows - 1))  # not at the cost of the panels
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns,
        frameon=False, fontsize=SMALL + 0.5,
    )  # fmt: skip


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a PNG; :class:`InputError` with the path if that cannot be done."""
    target = Path(path)
    options: dict[str, Any] = {"format": "png", "dpi": 150}
    try:
        figure.savefig(target, **options)
    except OSError as error:
        raise InputError(f"cannot write the figure {target}: {error.strerror or error}") from error
    return target

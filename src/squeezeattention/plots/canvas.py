"""What all figures share: size, fonts, colours, saving."""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def percent_line(axes: Axes, xs: Sequence[float], points: Sequence[tuple[float, float, float]], **style: Any) -> None:
    """Scores as a line in percent with error bars; each point is (score, low, high), shares of 1."""
    axes.errorbar(
        xs,
        [100 * share for share, _, _ in points],
        yerr=[
            [100 * max(0.0, share - low) for share, low, _ in points],
            [100 * max(0.0, high - share) for share, _, high in points],
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
    columns = min(len(entries), max(3, int(figure.get_figwidth() / 1.7)))
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

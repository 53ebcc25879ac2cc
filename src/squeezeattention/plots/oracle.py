"""What cutting a layer costs, beside what the signals say of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .canvas import COLOURS, FAINT, INK, LARGE, NORMAL, SMALL, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..oracle import Losses, SignalRank


def oracle_figure(losses: Losses, ranks: Sequence[SignalRank], *, most: int = 6) -> Figure:
    """Losses by layer, losses as more layers are cut, and the ``most`` signals that rank the layers best."""
    if not losses.alone:
        raise ConfigError("a figure of measured losses needs at least one layer")
    shown = list(ranks[:most])
    n_layers = len(losses.alone)
    figure = new_figure(min(16.0, max(9.0, 5.0 + 0.5 * n_layers)), 3.4 + 0.75 * len(shown))
    figure.suptitle("What cutting a layer costs, and which signals see it", fontsize=LARGE, color=INK)
    top, *below = figure.subfigures(1 + bool(shown), 1, height_ratios=[3.0, *([0.75 * len(shown)] if shown else [])],
                                    squeeze=False)[:, 0]  # fmt: skip
    alone, together = top.subplots(1, 2)
    _alone(alone, losses)
    _together(together, losses)
    if below:
        panels = below[0].subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, rank in zip(panels, shown, strict=True):
            _signal(axes, rank)
        panels[0].set_title(
            "signals (high bar: the layer matters more; number: rank correlation with the losses of each layer alone)",
            fontsize=NORMAL, color=INK, loc="left",
        )  # fmt: skip
        panels[-1].set_xlabel("layer", fontsize=NORMAL, color=INK)
    return figure


def _alone(axes: Axes, losses: Losses) -> None:
    for layer, cuts in enumerate(losses.alone):
        added = [cut - full for cut, full in zip(cuts, losses.full, strict=True)]
        axes.bar(layer, statistics.fmean(added), color=COLOURS[0], width=0.7)
        axes.plot([layer] * len(added), added, linestyle="", marker=".", markersize=4, color=INK, alpha=0.5)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_title("each layer alone (dots: contexts)", fontsize=NORMAL, color=INK, loc="left")
    axes.set_xlabel("layer", fontsize=NORMAL, color=INK)
    axes.set_ylabel("nats a token more", fontsize=NORMAL, color=INK)
    tidy(axes)


def _together(axes: Axes, losses: Losses) -> None:
    full = statistics.fmean(losses.full)
    heights = [statistics.fmean(cuts) - full for cuts in losses.greedy]
    axes.plot(range(1, len(heights) + 1), heights, marker="o", color=COLOURS[1])
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_xticks(range(1, len(heights) + 1), [str(layer) for layer in losses.order])
    axes.set_title("one more at a time", fontsize=NORMAL, color=INK, loc="left")
    axes.set_xlabel("layer that is cut as well", fontsize=NORMAL, color=INK)
    tidy(axes)


def _signal(axes: Axes, rank: SignalRank) -> None:
    matters = [-value for value in rank.signal_values]
    low, high = min(matters), max(matters)
    axes.bar(
        range(len(matters)), [(value - low) / (high - low) if high > low else 0.0 for value in matters],
        color=COLOURS[2], width=0.7,
    )  # fmt: skip
    axes.set_yticks([])
    found = "-" if rank.alone is None else f"{rank.alone:+.2f}"
    axes.set_ylabel(f"{rank.signal}\n{found}", fontsize=SMALL, color=INK, rotation=0, ha="right", va="center")
    tidy(axes)

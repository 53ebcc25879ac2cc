"""Tokens a second and bytes held, by batch, of each way to hold the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .canvas import FAINT, INK, LARGE, NORMAL, SMALL, line_style, new_figure, shared_legend, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..bench import Run


def speed_figure(runs: Sequence[Run], title: str, bytes_per_s: float) -> Figure:
    """Three panels over the batch: tokens/s, a step's time beside the least that its bytes allow, keys and values held.

    Where memory ran out there is a cross at the foot of the first panel.
    """
    if not runs:
        raise ConfigError("a figure of speeds needs at least one run")
    figure = new_figure(13.0, 4.6)
    figure.suptitle(title, fontsize=LARGE, color=INK)
    speed, step, held = figure.subplots(1, 3)
    for index, name in enumerate(dict.fromkeys(run.variant for run in runs)):
        own = sorted((run for run in runs if run.variant == name), key=lambda run: run.batch)
        fitting = [run for run in own if run.failed is None]
        batches, style = [run.batch for run in fitting], line_style(index)
        speed.plot(batches, [run.tokens_per_s for run in fitting], label=name, **style)
        step.plot(batches, [1e3 * (run.step_s or 0) for run in fitting], label=name, **style)
        least = [1e3 * ((run.weight_bytes or 0) + (run.kv_bytes or 0)) / bytes_per_s for run in fitting]
        step.plot(batches, least, color=style["color"], linewidth=0.8, linestyle=(0, (1, 2)))
        held.plot(batches, [(run.kv_bytes or 0) / 2**20 for run in fitting], label=name, **style)
        failed = [run.batch for run in own if run.failed is not None]
        speed.plot(
            failed, [0] * len(failed), color=style["color"], marker="x", markersize=9, linestyle="", clip_on=False
        )
    _frame(speed, "decoding, tokens/s (x: out of memory)", runs)
    _frame(step, "a step, ms (dotted: weights and cache at full bandwidth)", runs)
    _frame(held, "keys and values at the end, MiB", runs)
    shared_legend(figure, [speed, step, held])
    return figure


def _frame(axes: Axes, title: str, runs: Sequence[Run]) -> None:
    largest = max(run.batch for run in runs)
    ticks = [2**power for power in range(largest.bit_length())]
    axes.set_title(title, fontsize=SMALL + 0.5, color=INK, loc="left")
    axes.set_xlabel("batch", fontsize=NORMAL, color=INK)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(batch) for batch in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    tidy(axes)

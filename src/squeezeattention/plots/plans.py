"""Plans of one or more prompts: signal by layer, groups, budgets of layers and of KV heads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..extras import require
from ..plan import BudgetPlan
from ..plan.table import signal_label
from .canvas import COLOURS, GROUPS, INK, LARGE, NORMAL, SMALL, new_figure, tidy
from .heads import concentration, head_map, mean_heads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NUMBERS = 16  # layers up to which cells carry their value
_MOST_LABELS = 40  # prompts up to which each row is named
_LONGEST_LABEL = 30
_TICK_DISTANCE = 0.22


def plan_figure(plans: Sequence[tuple[str, BudgetPlan]], *, title: str | None = None) -> Figure:
    """Heat map of the signal (a row a prompt, a column a layer), the groups if there are any, and the budgets.

    Budgets of KV heads are a heat map, the mean of the prompts. All plans must have the same number of layers, and a
    signal, or else budgets of KV heads.
    """
    if not plans or len({plan.n_layers for _, plan in plans}) != 1:
        raise ConfigError("a figure of plans needs at least one plan, all with the same number of layers")
    labels, made = [label for label, _ in plans], [plan for _, plan in plans]
    n_layers, height = made[0].n_layers, 0.35 + min(7.0, 0.34 * len(plans))
    signals = [list(plan.signal_values) for plan in made if plan.signal_values is not None]
    heads = mean_heads(made)
    parts: list[Part] = []
    if len(signals) == len(made):
        parts.append(Part(height, lambda figure, axes: signal_map(figure, axes, signals, made[0].signal or "signal")))
    elif heads is None:
        raise ConfigError("a figure of plans needs plans that were made from a signal, or with budgets of KV heads")
    if any(max(plan.groups) > 1 for plan in made):
        parts.append(Part(height, lambda figure, axes: _group_map(axes, [plan.groups for plan in made])))
    named = len(parts)
    if heads is not None:
        where = "budget of each KV head" + (f" (mean of {len(made)} prompts)" if len(made) > 1 else "")
        parts.append(head_part(heads, where))
    parts.append(Part(2.1, lambda figure, axes: _budget_bars(axes, made)))
    figure, panels = stacked(parts, n_layers, title or concentration(made))
    for axes in panels[:named]:
        name_rows(axes, labels)
    return figure


class Part(NamedTuple):
    """One of several panels that share the axis of layers."""

    height: float  # inches
    draw: Callable[[Figure, Axes], None]


def head_part(heads: Sequence[Sequence[float]], title: str) -> Part:
    height = 0.35 + min(5.0, max(0.7, 0.26 * max(map(len, heads))))
    return Part(height, lambda figure, axes: head_map(figure, axes, heads, title=title))


def stacked(parts: Sequence[Part], n_layers: int, title: str) -> tuple[Figure, list[Axes]]:
    """All parts one below the other, the layers named below the last."""
    heights = [part.height for part in parts]
    figure = new_figure(min(16.0, max(7.5, 3.2 + 0.52 * n_layers)), 1.1 + sum(heights))
    figure.suptitle(title[0].upper() + title[1:], fontsize=LARGE, color=INK)
    panels = list(figure.subplots(len(parts), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    for part, axes in zip(parts, panels, strict=True):
        part.draw(figure, axes)
        axes.set_xlabel("")
    panels[-1].set_xticks(range(0, n_layers, max(1, math.ceil(n_layers / 20))))
    panels[-1].set_xlabel("layer", fontsize=NORMAL, color=INK)
    return figure, panels


def signal_map(figure: Figure, axes: Axes, rows: Sequence[Sequence[float]], name: str, *, numbers: bool = True) -> None:
    """A row a prompt, a column a layer, a colour bar at the side; cells carry their value where there is room.

    ``numbers=False``: rows are too thin for values.
    """
    flat = [value for row in rows for value in row]
    low, high = min(flat), max(flat)
    colors = require("matplotlib.colors", "plot")
    norm: Any = colors.Normalize(low, high if high > low else low + 1e-6)
    is_cosine = name == "cosine" and low < high < 1
    if is_cosine:  # most layers lie close below 1: a scale that opens up towards 1
        norm = colors.FuncNorm((_stretch, _unstretch), vmin=low, vmax=high)
    image = axes.imshow(rows, aspect="auto", cmap="cividis", norm=norm)
    bar = figure.colorbar(image, cax=axes.inset_axes((1.015, 0.0, 0.02, 1.0)))
    if is_cosine:
        ticks = _cosine_ticks(low, high, norm)
        bar.ax.set_yticks(ticks, [f"{tick:.4g}" for tick in ticks])
        bar.ax.minorticks_off()
    elif high <= low:
        bar.ax.set_yticks([low], [f"{low:.4g}"])
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    axes.set_title(signal_label(name), fontsize=NORMAL, color=INK, loc="left")
    if numbers and len(rows[0]) <= _MOST_NUMBERS and len(rows) <= _MOST_LABELS:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                dark = float(norm(value)) < 0.55
                axes.text(
                    x, y, _short(value), ha="center", va="center",
                    fontsize=SMALL - 1, color="white" if dark else "black",
                )  # fmt: skip


def _short(value: float) -> str:
    """Three digits, and no zero in front of the point."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3g}"


def _stretch(cosine: Any) -> Any:
    numpy = require("numpy", "plot")
    return -numpy.log10(numpy.maximum(1 - numpy.asarray(cosine, dtype=float), 1e-9))


def _unstretch(value: Any) -> Any:
    numpy = require("numpy", "plot")
    return 1 - 10.0 ** -numpy.asarray(value, dtype=float)


def _cosine_ticks(low: float, high: float, norm: Any) -> list[float]:
    """Round levels inside the range that are not too close to each other on the stretched scale."""
    ticks: list[float] = []
    for level in (0.9999, 0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5, 0.0, -0.5):
        if low <= level <= high and (not ticks or abs(norm(level) - norm(ticks[-1])) >= _TICK_DISTANCE):
            ticks.append(level)
    return ticks if len(ticks) > 1 else [low, high]


def _group_map(axes: Axes, groups: Sequence[Sequence[int]]) -> None:
    colors = require("matplotlib.colors", "plot")
    patches = require("matplotlib.patches", "plot")
    most = max(3, *(max(row) for row in groups))
    palette = group_palette(most)
    edges = [[index - 0.5 for index in range(count + 1)] for count in (len(groups[0]), len(groups))]
    axes.pcolormesh(
        *edges, groups, cmap=colors.ListedColormap(palette), vmin=0.5, vmax=most + 0.5, edgecolors="white",
        linewidth=0.8 if len(groups) <= _MOST_LABELS else 0.2,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_title("group (the last one is cut)", fontsize=NORMAL, color=INK, loc="left")
    present = sorted({group for row in groups for group in row})
    handles = [patches.Patch(color=palette[group - 1], label=f"G{group}") for group in present]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL)


def group_palette(most: int) -> list[str]:
    """Colours of G1 to the last of ``most`` groups (at least 2), which is grey."""
    return [GROUPS[0], *([GROUPS[1]] * (most - 2)), GROUPS[2]]


def _budget_bars(axes: Axes, plans: list[BudgetPlan]) -> None:
    layers = range(plans[0].n_layers)
    means = [statistics.fmean(plan.budgets[layer] for plan in plans) for layer in layers]
    several = len(plans) > 1
    axes.bar(layers, means, width=0.72, color=COLOURS[0], alpha=0.85, label="mean" if several else "budget")
    if several:
        x = [layer for plan in plans for layer in layers]
        y = [budget for plan in plans for budget in plan.budgets]
        axes.plot(x, y, "o", markersize=3, color=INK, alpha=0.6, label="each prompt", linestyle="none")
    base = statistics.fmean(plan.base_budget for plan in plans)
    axes.axhline(base, color=COLOURS[1], linestyle="--", linewidth=1.4, label=f"uniform ({base:.0f})")
    axes.set_ylabel("tokens kept", fontsize=NORMAL, color=INK)
    by_head = any(plan.head_budgets is not None for plan in plans)
    title = "budget of each layer" + (" (mean of its heads)" if by_head else "")
    axes.set_title(title, fontsize=NORMAL, color=INK, loc="left")
    axes.set_ylim(0, max(max(plan.budgets) for plan in plans) * 1.08)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL)
    tidy(axes)


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """The rows of a map, at most every so many."""
    step = max(1, math.ceil(len(labels) / _MOST_LABELS))
    shown = range(0, len(labels), step)
    axes.set_yticks(list(shown), [shortened(labels[i]) for i in shown])
    axes.tick_params(labelsize=SMALL, length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def shortened(label: str) -> str:
    """The end of a long label: of a path, the part that tells files apart."""
    return label if len(label) <= _LONGEST_LABEL else "…" + label[1 - _LONGEST_LABEL :]

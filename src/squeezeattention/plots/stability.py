"""Plans of many prompts: the signal of each, the groups of each task, the budgets of one frozen plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..extras import require
from ..plan import BudgetPlan
from ..stability import Observation
from ..stability.layers import by_layer, group_counts
from .canvas import COLOURS, FAINT, INK, NORMAL, SMALL, tidy
from .heads import concentration, mean_heads
from .plans import Part, group_palette, head_part, name_rows, shortened, signal_map, stacked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.3  # inches of a row that has a name of its own
_THIN = 0.085  # ... and of one that has not
_TALLEST = 7.0  # inches of a map


def stability_figure(observations: Sequence[Observation], frozen: BudgetPlan, *, title: str | None = None) -> Figure:
    """Heat map of the signal (a row a prompt, those of a task together), groups, and budgets.

    With several tasks the groups have a row a task, and each cell shows how its prompts divide: the share of G1 from
    below, then G2, and so on. With one task they have a row a prompt. The budgets are those of ``frozen`` (of KV heads
    as a heat map, too), with what the prompts' own plans gave each layer: all of it as a line, the middle half as a
    thick one.

    Raises :class:`ConfigError` for no prompts, plans of different layers, or plans with neither a signal nor budgets of
    KV heads.
    """
    plans = [one.plan for one in observations]
    if not plans or len({plan.n_layers for plan in (*plans, frozen)}) != 1:
        raise ConfigError("a figure of plans needs at least one plan, all with the same number of layers")
    tasks = list(dict.fromkeys(one.task for one in observations))
    ordered = sorted(observations, key=lambda one: tasks.index(one.task))
    several = len(tasks) > 1
    heads = mean_heads([frozen])
    parts: list[Part] = []
    if all(plan.signal_values is not None for plan in plans):
        parts.append(
            Part(0.35 + _map_height(ordered, several), lambda figure, axes: _signals(figure, axes, ordered, tasks))
        )
    elif heads is None:
        raise ConfigError("a figure of plans needs plans that were made from a signal, or with budgets of KV heads")
    if any(max(plan.groups) > 1 for plan in plans):
        groups = (
            [(task, [one.plan.groups for one in ordered if one.task == task]) for task in tasks]
            if several
            else [(one.source, [one.plan.groups]) for one in ordered]
        )
        parts.append(Part(0.35 + min(_TALLEST, 0.4 * len(groups)), lambda figure, axes: _groups(axes, groups)))
    if heads is not None:
        parts.append(head_part(heads, "budget of each KV head, frozen plan"))
    parts.append(Part(2.45, lambda figure, axes: _budgets(axes, plans, frozen)))
    count = f"{len(plans)} prompts" + (f" of {len(tasks)} tasks" if several else "")
    figure, _ = stacked(parts, frozen.n_layers, title or f"{concentration([frozen])}: one plan for {count}")
    return figure


def _signals(figure: Figure, axes: Axes, ordered: Sequence[Observation], tasks: Sequence[str]) -> None:
    rows = [list(one.plan.signal_values or ()) for one in ordered]
    signal_map(figure, axes, rows, ordered[0].plan.signal or "signal", numbers=len(tasks) == 1)
    _name_prompts(axes, ordered, tasks)


def _map_height(ordered: Sequence[Observation], several: bool) -> float:
    """Inches of the heat map: rows are named one by one, or only where a task begins."""
    if not several:
        return min(_TALLEST, _ROW * len(ordered))
    return min(_TALLEST, max(_THIN * len(ordered), 0.4 * len({one.task for one in ordered})))


def _name_prompts(axes: Axes, ordered: Sequence[Observation], tasks: Sequence[str]) -> None:
    """Names of prompts, or of tasks in the middle of their rows, with a line between tasks."""
    if len(tasks) == 1:
        name_rows(axes, [one.source for one in ordered])
        return
    middles, start = [], 0
    for task in tasks:
        size = sum(one.task == task for one in ordered)
        middles.append(start + (size - 1) / 2)
        start += size
        if start < len(ordered):
            axes.axhline(start - 0.5, color="white", linewidth=2.5)
    sizes = [sum(one.task == task for one in ordered) for task in tasks]
    axes.set_yticks(middles, [f"{shortened(task)} ({size})" for task, size in zip(tasks, sizes, strict=True)])
    axes.tick_params(labelsize=SMALL, length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _groups(axes: Axes, rows: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> None:
    """A row a task or prompt, a column a layer; a cell is divided as its prompts are."""
    patches = require("matplotlib.patches", "plot")
    most = max(max(groups) for _, members in rows for groups in members)
    palette = group_palette(most)
    gap = 0.08 if len(rows) <= 40 else 0.0
    layers = range(len(rows[0][1][0]))
    for y, (_, members) in enumerate(rows):
        counts = group_counts(members, most)
        below = [y + 0.5 - gap] * len(counts)  # the lower edge: the y axis points down
        for group in range(most):
            tall = [(1 - 2 * gap) * layer[group] / len(members) for layer in counts]
            axes.bar(layers, [-height for height in tall], bottom=below, width=0.92, color=palette[group], linewidth=0)
            below = [edge - height for edge, height in zip(below, tall, strict=True)]
    axes.set_ylim(len(rows) - 0.5, -0.5)
    several = any(len(members) > 1 for _, members in rows)
    meaning = "share of a task's prompts that have a layer in it; " if several else ""
    axes.set_title(f"group ({meaning}the last one is cut)", fontsize=NORMAL, color=INK, loc="left")
    handles = [patches.Patch(color=palette[group], label=f"G{group + 1}") for group in range(most)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL)
    name_rows(axes, [label for label, _ in rows])


def _budgets(axes: Axes, plans: Sequence[BudgetPlan], frozen: BudgetPlan) -> None:
    """Bars of the frozen plan; range and middle half of the prompts' own plans, at the frozen plan's size."""
    numpy = require("numpy", "plot")
    layers = list(range(frozen.n_layers))
    # Plans of prompts of other lengths have other totals: what is compared is how they divide it.
    scaled = [[budget * frozen.total / plan.total for budget in plan.budgets] for plan in plans]
    low, first, third, high = numpy.percentile(scaled, [0, 25, 75, 100], axis=0)
    axes.bar(layers, frozen.budgets, width=0.72, color=COLOURS[2], alpha=0.45, label="frozen plan")
    axes.vlines(layers, low, high, color=INK, linewidth=1.0, label="prompts: all")
    axes.vlines(layers, first, third, color=INK, linewidth=3.5, label="prompts: middle half")
    means = [spread.mean for spread in by_layer(scaled)]
    axes.plot(layers, means, "o", color="white", markeredgecolor=INK, markersize=4.5, label="prompts: mean")
    axes.axhline(
        frozen.base_budget, color=COLOURS[1], linestyle="--", linewidth=1.3, label=f"uniform ({frozen.base_budget})"
    )
    axes.set_ylabel("tokens kept", fontsize=NORMAL, color=INK)
    by_head = frozen.head_budgets is not None
    title = "budget of each layer" + (" (mean of its heads)" if by_head else "")
    axes.set_title(title, fontsize=NORMAL, color=INK, loc="left")
    axes.set_ylim(0, 1.08 * max(*frozen.budgets, *high))
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL)
    tidy(axes)
    axes.spines["bottom"].set_color(FAINT)

"""Budgets of KV heads: a heat map of layers and heads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..plan import BudgetPlan
from .canvas import FAINT, INK, NORMAL, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TICKS = 20
_COLOURS = "Blues"


def mean_heads(plans: Sequence[BudgetPlan]) -> list[list[float]] | None:
    """Tokens of each layer's KV heads, the mean of the plans; ``None`` if no plan tells heads apart."""
    counts = next((tuple(map(len, plan.head_budgets)) for plan in plans if plan.head_budgets is not None), None)
    if counts is None:
        return None
    return [
        [statistics.fmean(head) for head in zip(*(plan.heads(layer, count) for plan in plans), strict=True)]
        for layer, count in enumerate(counts)
    ]


def concentration(plans: Sequence[BudgetPlan]) -> str:
    """The point of such a picture: in how many of the heads, or layers, half of the cache is."""
    heads = mean_heads(plans)
    if heads is None:
        layers = range(plans[0].n_layers)
        units = [statistics.fmean(plan.budgets[layer] for plan in plans) for layer in layers]
    else:
        units = [tokens for layer in heads for tokens in layer]
    total, held, count = math.fsum(units), 0.0, 0
    for count, tokens in enumerate(sorted(units, reverse=True), 1):  # noqa: B007  # read after the loop
        held += tokens
        if 2 * held >= total:
            break
    return f"half of the cache is in {count} of {len(units)} {'layers' if heads is None else 'KV heads'}"


def head_map(
    figure: Figure, axes: Axes, heads: Sequence[Sequence[float]], *, upright: bool = False, title: str | None = None,
    label: str = "tokens kept", colours: str = _COLOURS, most: float | None = None,
) -> None:  # fmt: skip
    """A cell for each KV head, darker the more tokens it keeps, with a colour bar at the side.

    A column is a layer, or with ``upright`` a row. Layers may have different numbers of heads. ``label``: what else the
    numbers are; ``most``: the darkest one, that of the largest if not given.
    """
    count = max(map(len, heads))
    rows = [[*layer, *[math.nan] * (count - len(layer))] for layer in heads]
    cells = rows if upright else [list(column) for column in zip(*rows, strict=True)]
    widest = max(tokens for layer in heads for tokens in layer) if most is None else most
    image = axes.pcolormesh(
        [x - 0.5 for x in range(len(cells[0]) + 1)], [y - 0.5 for y in range(len(cells) + 1)], cells,
        cmap=colours, vmin=0, vmax=widest, edgecolors="white", linewidth=0.8 if len(heads) * count <= 400 else 0.2,
    )  # fmt: skip
    axes.invert_yaxis()
    bar = figure.colorbar(image, cax=axes.inset_axes((1.06, 0.0, 0.07, 1.0) if upright else (1.015, 0.0, 0.02, 1.0)))
    bar.set_label(label, fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    bar.outline.set_visible(False)
    layers, numbers = (axes.yaxis, axes.xaxis) if upright else (axes.xaxis, axes.yaxis)
    for axis, ends, name in ((layers, len(heads), "layer"), (numbers, count, "KV head")):
        axis.set_ticks(range(0, ends, max(1, math.ceil(ends / _MOST_TICKS))))
        axis.set_label_text(name, fontsize=NORMAL, color=INK)
    axes.tick_params(labelsize=SMALL, length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    if title is not None:
        axes.set_title(title, fontsize=NORMAL, color=INK, loc="left")

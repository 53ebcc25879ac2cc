"""The pictures of a summary."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..plots import (
    ADDED_NATS,
    Panel,
    Point,
    Scale,
    SweepPanel,
    SweepPoint,
    accuracy_figure,
    percent,
    signals_figure,
    sweep_figure,
)
from .columns import Cell, budget_label, is_continuation, label, labels
from .spec import Spec
from .summary import ALL


class Picture(NamedTuple):
    """A figure, the file it goes to, and what it shows."""

    name: str
    caption: str
    figure: Any


def pictures(summary: Mapping[str, Any]) -> Iterator[Picture]:
    """Accuracy against bytes for each task, the sweep over p if there is one, and the layers' signals."""
    groups: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for cell in summary["results"]:
        groups[cell["task"], cell["length"]].append(cell)
    for (task, length), cells in groups.items():
        measured = [cell for cell in cells if cell["bytes"] is not None and _value(cell)[0] is not None]
        full = next((cell for cell in measured if cell["policy"] is None), None)
        methods = [cell for cell in measured if cell["policy"] is not None]
        if full is None or not methods:
            continue  # nothing to compare with, or nothing that ran
        shown = [cell for cell in methods if _is_first_p(cell, summary["settings"]["ps"])]
        yield _accuracy(task, length, full, shown, summary["settings"]["ps"])
        if len(summary["settings"]["ps"]) > 1:
            yield _sweep(task, length, full, methods)
    if summary["signals"]:
        yield _signals(summary["signals"])


def _is_first_p(cell: Cell, ps: Sequence[float]) -> bool:
    return len(ps) < 2 or cell["p"] in (None, ps[0])


def _accuracy(task: str, length: int, full: Cell, cells: Sequence[Cell], ps: Sequence[float]) -> Picture:
    panels, names = [], labels(cell["allocator"] for cell in cells)
    for policy in dict.fromkeys(cell["policy"] for cell in cells):
        lines: dict[str, list[Point]] = defaultdict(list)
        for cell in cells:
            if cell["policy"] == policy:
                lines[names[cell["allocator"]]].append(_point(cell))
        panels.append(Panel(label(policy), lines))
    title = f"{task}, {length:,} tokens"
    figure = accuracy_figure(panels, _point(full), title=title, n=full["n_questions"], scale=_scale(full))
    caption = f"{title}: {_what(full)} against measured bytes, 95 % bootstrap intervals over contexts."
    if is_continuation(full):
        caption += f" The full cache's loss is {full['nats_per_token']:.3f} nats a token."
    if len(ps) > 1:
        caption += f" Of several p, the first: {ps[0]:g}."
    return Picture(f"accuracy_{_file(task)}_{length}.png", caption, figure)


def _sweep(task: str, length: int, full: Cell, cells: Sequence[Cell]) -> Picture:
    policies = list(dict.fromkeys(cell["policy"] for cell in cells))
    budgets = list(dict.fromkeys(cell["budget"] for cell in cells))
    panels = [[_sweep_panel(full, cells, policy, budget) for policy in policies] for budget in budgets]
    title = f"{task}, {length:,} tokens: {_what(full)} against p"
    caption = f"{title}; 95 % bootstrap intervals over contexts. Allocators without a p are levels."
    figure = sweep_figure(panels, title=title, scale=_scale(full))
    return Picture(f"p_sweep_{_file(task)}_{length}.png", caption, figure)


def _sweep_panel(full: Cell, cells: Sequence[Cell], policy: str, budget: str) -> SweepPanel:
    lines: dict[str, list[SweepPoint]] = defaultdict(list)
    levels = {"full cache": _point(full).value}
    names = labels(cell["allocator"] for cell in cells)
    for cell in cells:
        if (cell["policy"], cell["budget"]) != (policy, budget):
            continue
        if cell["p"] is None:
            levels[names[cell["allocator"]]] = _point(cell).value
        else:
            line = Spec.parse(cell["allocator"]).without("p").label
            lines[line].append(SweepPoint(cell["p"], *_point(cell)[1:]))
    return SweepPanel(f"{label(policy)}, {budget_label(budget)}", lines, levels)


def _signals(entries: Sequence[Mapping[str, Any]]) -> Picture:
    signals: dict[str, list[tuple[str, Sequence[float]]]] = defaultdict(list)
    for entry in entries:
        signals[entry["signal"]].append((f"{entry['task']} {entry['length']:,}", entry["mean"]))
    caption = "What each signal says of each layer, mean over the samples of a task. Low: the layer matters more."
    return Picture("signals.png", caption, signals_figure(signals, title="Signals by layer"))


def _value(cell: Cell) -> tuple[Any, Any, Any]:
    """Score, or loss beyond the full cache's, and its interval."""
    if is_continuation(cell):
        return cell["nats_added"], cell["nats_added_low"], cell["nats_added_high"]
    return cell["score"], cell["low"], cell["high"]


def _point(cell: Cell) -> Point:
    value, low, high = _value(cell)
    return Point(cell["bytes"], value, *((value, value) if low is None else (low, high)))


def _scale(cell: Cell) -> Scale:
    """Losses are compared with each other: on an axis of shares all methods would be one line."""
    if is_continuation(cell):
        return ADDED_NATS
    return percent("mean score" if cell["task"] == ALL else "score")


def _what(cell: Cell) -> str:
    return "loss" if is_continuation(cell) else "score"


def _file(task: str) -> str:
    """A file's name of which no other task has the like, on file systems that do not tell A from a either."""
    if task == ALL:
        return "all-tasks"  # no name below has just this form
    if re.fullmatch(r"[a-z0-9_]{1,80}", task):
        return task
    readable = re.sub(r"\W+", "_", task, flags=re.ASCII).strip("_").lower()[:60]
    return f"{readable}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"

"""The results as tables for a terminal. Needs the ``cli`` extra."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .columns import WIN_COLUMNS, Cell, columns_for, is_continuation, label
from .summary import ALL

if TYPE_CHECKING:
    from rich.table import Table


def results_table(cells: Sequence[Cell], width: int = 80) -> Table:
    """All configurations of one task, with as many columns as a terminal of ``width`` has room for."""
    columns = [column for column in columns_for(cells) if column.from_width <= width]
    made = _empty()
    for column in columns:
        made.add_column(column.title, justify="right" if column.right else "left", no_wrap=column.right)
    for index, cell in enumerate(cells):
        following = cells[index + 1] if index + 1 < len(cells) else None
        made.add_row(
            *(column.text(cell) for column in columns),
            style="bold" if cell["policy"] is None else None,
            end_section=following is not None and following["policy"] != cell["policy"],
        )
    return made


def first_tables(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[Cell]]]:
    """What to show first: all tasks with questions together where there are several, and each of the others."""
    groups: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for cell in summary["results"]:
        groups[cell["task"], cell["length"]].append(cell)
    for (task, length), cells in groups.items():
        is_part = (ALL, length) in groups and task != ALL and not is_continuation(cells[0])
        if not is_part:
            yield f"{task}, {length:,} tokens", cells


def wins_table(entries: Sequence[Cell]) -> Table:
    """Each allocator against uniform budgets (a summary's ``against_uniform``)."""
    made = _empty()
    for column in WIN_COLUMNS:
        made.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for entry in entries:
        made.add_row(*(column.text(entry) for column in WIN_COLUMNS))
    return made


def _empty() -> Table:
    from rich import box
    from rich.table import Table

    return Table(header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)


def overview_tables(summary: Mapping[str, Any], width: int = 80) -> Iterator[Table]:
    """Mean score over policies and budgets: a row for each allocator, a column for each task.

    As many tables as it takes for none to be wider than ``width``.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in summary["results"]:
        if cell["task"] != ALL:
            task = f"{cell['task']} {cell['length']}" if len(summary["settings"]["lengths"]) > 1 else cell["task"]
            scores[label(cell["allocator"])][task].append(cell["score"])
    tasks = list(dict.fromkeys(task for row in scores.values() for task in row))
    names = max(map(len, scores), default=0)
    for shown in _fitting(tasks, width - names - 4):
        made = _empty()
        made.add_column("", no_wrap=True)
        for task in shown:
            made.add_column(task, justify="right", no_wrap=True)
        for name, row in scores.items():
            made.add_row(name, *(f"{100 * statistics.fmean(row[t]):.1f}" if row[t] else "–" for t in shown))
        yield made


def _fitting(titles: Sequence[str], width: int) -> Iterator[list[str]]:
    """The titles in groups whose columns fit beside each other; a title that fits nowhere comes alone."""
    group: list[str] = []
    for title in titles:
        if group and sum(max(5, len(one)) + 2 for one in (*group, title)) > width:
            yield group
            group = []
        group.append(title)
    if group:
        yield group

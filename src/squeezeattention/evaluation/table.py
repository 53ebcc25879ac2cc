"""The results as tables for a terminal. Needs the ``cli`` extra."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .columns import Cell, Column, columns_for, is_continuation, labels, win_columns
from .summary import ALL

if TYPE_CHECKING:
    from rich.table import Table


def results_table(cells: Sequence[Cell], width: int = 80) -> Table:
    """All configurations of one task, with as many columns as a terminal of ``width`` has room for."""
    columns = [column for column in columns_for(cells) if column.from_width <= width]
    made = _empty(columns)
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
    columns = win_columns(entries)
    made = _empty(columns)
    for entry in entries:
        made.add_row(*(column.text(entry) for column in columns))
    return made


def _empty(columns: Sequence[Column] = ()) -> Table:
    """Numbers stay on a line; names that are too long for theirs go on in the next, and none of them is cut off."""
    from rich import box
    from rich.table import Table

    made = Table(header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
    for column in columns:
        side: Literal["left", "right"] = "right" if column.right else "left"
        made.add_column(column.title, justify=side, no_wrap=column.right, overflow="fold")
    return made


def overview_tables(summary: Mapping[str, Any], width: int = 80) -> Iterator[Table]:
    """Mean score, or loss, over policies and budgets: a row for each allocator, a column for each task.

    As many tables as it takes for none to be wider than ``width``.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    short = labels(cell["allocator"] for cell in summary["results"])
    for cell in summary["results"]:
        if cell["task"] != ALL:
            task = f"{cell['task']} {cell['length']}" if len(summary["settings"]["lengths"]) > 1 else cell["task"]
            losses = is_continuation(cell)
            value = cell["nats_per_token"] if losses else 100 * cell["score"]
            if value is not None:
                scores[short[cell["allocator"]]][f"{task}, nats" if losses else task].append(value)
    tasks = list(dict.fromkeys(task for row in scores.values() for task in row))
    names = min(max(map(len, scores), default=0), width // 2)
    for shown in _fitting(tasks, width - names - 4):
        made = _empty()
        made.add_column("", max_width=names, overflow="fold")
        for task in shown:
            made.add_column(task, justify="right", no_wrap=True)
        for name, row in scores.items():
            made.add_row(name, *(_mean(row[t], 2 if t.endswith(", nats") else 1) for t in shown))
        yield made


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f}" if values else "–"


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

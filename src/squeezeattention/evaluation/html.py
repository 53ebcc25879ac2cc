"""The report as one HTML file that needs nothing else: no script, no style sheet, no picture from outside."""

from __future__ import annotations

import base64
import html
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .columns import LEGEND, WIN_LEGEND, Cell, bytes_text, columns_for, is_continuation, label, labels, win_columns
from .verdict import verdicts

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px; margin: .8rem 0 } .wide { overflow-x: auto }
th { text-align: left; border-bottom: 1px solid #999 } th, td { padding: .15rem .6rem; white-space: nowrap }
td.right, th.right { text-align: right; font-variant-numeric: tabular-nums } tr.full { font-weight: bold }
tr.first td { border-top: 1px solid #ddd } figure { margin: 1.2rem 0 } img { max-width: 100%; height: auto }
figcaption, .note { color: #666; font-size: 13px } dl { display: grid; grid-template-columns: fit-content(40%) 1fr }
dt { font-weight: bold; padding-right: 1rem } dt, dd { margin: 0 0 .2rem; overflow-wrap: anywhere }
"""


def page(run: Mapping[str, Any], summary: Mapping[str, Any], images: Sequence[tuple[str, bytes]]) -> str:
    """The whole document; ``images`` are captions with PNG data."""
    settings = summary["settings"]
    title = f"Evaluation of {settings['model']}"
    parts = [
        f"<h1>{_safe(title)}</h1>",
        *(f"<p>{_safe(text)}</p>" for text in verdicts(summary)),
        *_wins_table(summary["against_uniform"]),
        "<h2>Quality against bytes</h2>",
        *(_image(caption, data) for caption, data in images),
        "<h2>Results by task</h2>",
        f'<p class="note">{_safe(LEGEND)}</p>',
        *_task_tables(summary["results"]),
        "<h2>Bytes for nearly what the full cache scores</h2>",
        _reach_table(summary["reach"]),
        *_error_table(summary["errors"]),
        "<h2>Setting</h2>",
        _definitions(_setting(run, summary)),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{_safe(title)}</title><style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _safe(text: object) -> str:
    return html.escape(str(text))


def _image(caption: str, data: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    text = _safe(caption)
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _task_tables(cells: Sequence[Cell]) -> Iterable[str]:
    groups: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell["task"], cell["length"]].append(cell)
    for (task, length), rows in groups.items():
        columns = columns_for(rows)
        yield f"<h3>{_safe(task)}, {length:,} tokens</h3>"
        yield _table(
            [(column.title, column.right) for column in columns],
            [[column.text(cell) for column in columns] for cell in rows],
            [_row_class(cell, rows[index - 1] if index else None) for index, cell in enumerate(rows)],
        )


def _wins_table(entries: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if entries:
        columns = win_columns(entries)
        yield "<h2>Against uniform budgets of the same size</h2>"
        yield _table(
            [(column.title, column.right) for column in columns],
            [[column.text(entry) for column in columns] for entry in entries],
        )
        yield f'<p class="note">{_safe(WIN_LEGEND)}</p>'


def _row_class(cell: Cell, before: Cell | None) -> str:
    if cell["policy"] is None:
        return "full"
    return "first" if before is not None and before["policy"] != cell["policy"] else ""


def _table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    sides = [' class="right"' if right else "" for _, right in columns]
    head = "".join(f"<th{side}>{_safe(title)}</th>" for side, (title, _) in zip(sides, columns, strict=True))
    body = []
    for index, row in enumerate(rows):
        name = f' class="{classes[index]}"' if classes and classes[index] else ""
        body.append(
            f"<tr{name}>" + "".join(f"<td{s}>{_safe(text)}</td>" for s, text in zip(sides, row, strict=True)) + "</tr>"
        )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'


_STATUS = {"not_reached": "not reached", "undefined": "the full cache scores 0"}


def _reach_table(entries: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        ("task", False),
        ("length", True),
        ("policy", False),
        ("layers", False),
        ("kept", True),
        ("bytes", True),
    ]
    names = labels(entry["allocator"] for entry in entries)
    rows = [
        [
            entry["task"], f"{entry['length']:,}", label(entry["policy"]), names[entry["allocator"]],
            _kept(entry), _reach_text(entry),
        ]
        for entry in entries
    ]  # fmt: skip
    return _table(columns, rows)


def _kept(entry: Mapping[str, Any]) -> str:
    """A share of the score; of the probability of a token, so many nats more."""
    return f"{-math.log(entry['share']):+.2f} nats" if is_continuation(entry) else f"{entry['share']:.0%}"


def _reach_text(entry: Mapping[str, Any]) -> str:
    if entry["bytes"] is None:
        return _STATUS[entry["status"]]
    return ("at most " if entry["status"] == "at_most" else "") + bytes_text(entry["bytes"])


def _error_table(errors: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if not errors:
        return
    yield "<h2>Failures</h2>"
    columns = [("error", False), ("text", False), ("rows", True), ("first", False)]
    yield _table(columns, [[error["type"], error["text"], str(error["n"]), error["first"]] for error in errors])


def _definitions(items: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(text or '–')}</dd>" for name, text in items) + "</dl>"


def _setting(run: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in summary["settings"].items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        yield name, ", ".join(map(str, values))
    for name, value in summary["model"].items():
        yield f"model {name}", str(value)
    for number, machine in enumerate(run["environments"], 1):
        yield f"machine {number}", ", ".join(f"{name} {value}" for name, value in machine.items())

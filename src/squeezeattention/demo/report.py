"""What the demo found: answers, a table, three sentences computed from the numbers, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..plots import Panel, Point, demo_figure, mean_heads, save
from ..tasks.scoring import sign_test
from .measure import Measured, Result, is_right

if TYPE_CHECKING:
    from rich.table import Table

_LEVEL = 0.05
_NEAR = 0.95  # share of the full cache's score that counts as nearly as good
_SHOWN = 6  # questions
_WIDEST = 12  # characters of an answer

#: What these are, for people who meet the names here.
_MEANING = {
    "h2o/uniform": "heavy hitters under equal budgets (h2o/uniform)",
    "h2o/squeeze": "under the published rule for layers (h2o/squeeze)",
    "echo/global": "what the model looks back at when it repeats its text (echo/global)",
}


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Measured, Result], str]
    left: bool = False


_COLUMNS = (
    _Column("cache", lambda row, _: row.label, left=True),
    _Column("budget", lambda row, _: f"{row.budget:.0%}"),
    _Column("right", lambda row, _: f"{row.score.right}/{row.score.n}"),
    _Column("95 %", lambda row, _: f"{100 * row.score.low:.0f}-{100 * row.score.high:.0f} %"),
    _Column("KV held", lambda row, _: _size(row.mean_bytes)),
    _Column("of full", lambda row, result: f"{_share(row, result):.0%}"),
    _Column("read s", lambda row, _: f"{row.mean_seconds:.1f}"),
    _Column("tok/s", lambda row, _: f"{row.tokens_per_s:.0f}"),
)
LEGEND = (
    "right: the number is right, whole (95 %: Wilson interval). KV held: measured bytes of keys and values after the "
    "cut, mean of the texts. read s: to read a text, plan and cut. tok/s: all answers to a text at once; the model's "
    "weights take most of that time, not a cache of this size."
)


def table(result: Result) -> Table:
    """Every way to cut the cache; needs ``rich``."""
    made = _table()
    for column in _COLUMNS:
        made.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
    rows = (result.full, *result.rows)
    for row, following in zip(rows, (*rows[1:], None), strict=True):
        made.add_row(
            *(column.cell(row, result) for column in _COLUMNS),
            style="bold" if row is result.full else None,
            end_section=following is not None and following.label != row.label,
        )
    return made


def examples(result: Result) -> Table:
    """The first questions of the first text, and what each cache of the middle budget answers; needs ``rich``."""
    from rich.text import Text

    rows = [result.full, *_middle(result)]
    made = _table()
    for title in ("question", "in the text", *(row.label for row in rows)):
        made.add_column(title, no_wrap=title != "question")
    for index, fact in enumerate(result.contexts[0].facts[:_SHOWN]):
        cells = []
        for row in rows:
            said = row.said[0][index]
            right = is_right(fact, said)
            cells.append(Text(fact.value, style="green") if right else Text(f"× {_short(said)}", style="red"))
        made.add_row(fact.question, fact.value, *cells)
    return made


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)


def _short(said: str) -> str:
    """The beginning of a wrong answer."""
    line = " ".join(said.split()).rstrip(".") or "nothing"
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"


def _size(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 1024:,.0f} KiB"


def _share(row: Measured, result: Result) -> float:
    return row.mean_bytes / result.full.mean_bytes


def _middle(result: Result) -> list[Measured]:
    """The rows of the middle budget, which the picture and the examples show."""
    budgets = sorted(result.settings.budgets)
    return [row for row in result.rows if row.budget == budgets[len(budgets) // 2]]


# ------------------------------------------------------------------ sentences


def findings(result: Result) -> list[str]:
    """Three sentences: what the full cache can do, what the caches of the middle budget can, how small one may be."""
    return [_about_full(result), _about_middle(result), _about_smallest(result)]


def _about_full(result: Result) -> str:
    score = result.full.score
    text = (
        f"With the full cache, {_size(result.full.mean_bytes)} of keys and values a text, the model answers "
        f"{score.right} of {score.n} questions right"
    )
    return f"{text}, so few that the rest says little of any method." if score.share < 0.5 else f"{text}."


def _about_middle(result: Result) -> str:
    *others, ours = _middle(result)
    names = [_MEANING.get(row.label, row.label) for row in (*others, ours)]
    counts = ", ".join(f"{name} {row.score.right}" for name, row in zip(names, (*others, ours), strict=True))
    text = f"With {_share(ours, result):.0%} of the bytes the answers are: {counts}"
    if not others:
        return f"{text}."
    verdicts: dict[str, list[str]] = {}
    for row in others:
        told = sign_test(ours.answers, row.answers) < _LEVEL
        verdict = "cannot be told apart from"
        if told:
            verdict = "is better than" if ours.score.right > row.score.right else "is worse than"
        verdicts.setdefault(verdict, []).append(row.label)
    parts = " and ".join(f"{verdict} {' and '.join(labels)}" for verdict, labels in verdicts.items())
    return f"{text}; on the same questions {ours.label} {parts} (exact paired test, 5 %)."


def _about_smallest(result: Result) -> str:
    full = result.full.score
    near = [row for row in result.rows if full.right and row.score.right >= _NEAR * full.right]
    if near:
        row = min(near, key=lambda row: row.mean_bytes)
        start = f"The smallest cache that answers at least {_NEAR:.0%} of what the full one does is"
    else:
        row = max(result.rows, key=lambda row: (row.score.right, -row.mean_bytes))
        start = f"No cache answers {_NEAR:.0%} of what the full one does; the best is"
    return (
        f"{start} {row.label} with {_size(row.mean_bytes)} ({_share(row, result):.0%}), which gets "
        f"{row.score.right} of {row.score.n} right."
    )


# ---------------------------------------------------------------------- files


def to_json(result: Result) -> dict[str, Any]:
    """Everything measured, as plain JSON values."""
    settings = result.settings
    return {
        "settings": {
            "kind": settings.kind,
            "length": settings.length,
            "contexts": settings.contexts,
            "facts": settings.facts,
            "budgets": list(settings.budgets),
            "ways": [list(way) for way in settings.ways],
            "p": settings.p,
            "seed": settings.seed,
            "text": None if settings.text is None else str(settings.text),
        },
        "contexts": [
            {
                "source": context.source,
                "tokens": len(context.tokens),
                "questions": [{"question": fact.question, "answer": fact.value} for fact in context.facts],
            }
            for context in result.contexts
        ],
        "full": _row_json(result.full),
        "rows": [_row_json(row) for row in result.rows],
        "findings": findings(result),
        "seconds": round(result.seconds, 2),
    }


def _row_json(row: Measured) -> dict[str, Any]:
    score = row.score
    return {
        "cache": row.label,
        "budget": row.budget,
        "right": score.right,
        "n": score.n,
        "interval": [round(score.low, 4), round(score.high, 4)],
        "answers": row.answers,
        "said": row.said,
        "bytes": row.bytes,
        "read_seconds": [round(seconds, 4) for seconds in row.seconds],
        "tokens_per_s": round(row.tokens_per_s, 2),
        "plans": [plan.to_dict() for plan in row.plans],
    }


def write_files(result: Result, folder: Path) -> list[Path]:
    """demo.json and demo.png; raises :class:`InputError`."""
    target = folder / "demo.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(to_json(result), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    return [target, save(_figure(result), folder / "demo.png")]


def _figure(result: Result) -> Any:
    middle = _middle(result)
    ours = middle[-1]
    # A rule that did not tell heads apart is drawn as one column.
    heads = mean_heads(ours.plans) or [[float(budget)] for budget in ours.plans[0].budgets]
    labels = dict.fromkeys(row.label for row in result.rows)
    lines = {label: [_point(row) for row in result.rows if row.label == label] for label in labels}
    full = result.full.score
    first, *others = [f"{row.label} {row.score.right}" for row in reversed(middle)]
    counts = ", ".join([first.replace(" ", " answers ", 1), *others])
    return demo_figure(
        heads, Panel("", lines), _point(result.full),
        title=f"{full.n} questions, {_share(ours, result):.0%} of the bytes: {counts}; the full cache {full.right}",
        map_title=f"where {ours.label} keeps {ours.budget:.0%}", n=full.n,
    )  # fmt: skip


def _point(row: Measured) -> Point:
    score = row.score
    return Point(row.mean_bytes, score.share, score.low, score.high)

"""The columns of a results table, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..plan import Budget
from .spec import Spec
from .summary import is_clear

Cell = Mapping[str, Any]
"""An entry of one of a summary's lists, mostly of ``results``."""


@dataclass(frozen=True)
class Column:
    """A title, what it shows of an entry, and the terminal width from which on there is room for it."""

    title: str
    text: Callable[[Cell], str]
    from_width: int = 0
    right: bool = True


def bytes_text(count: float | None) -> str:
    """Readable bytes, a dash for none."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def budget_label(budget: str | None) -> str:
    """Such as ``20%``, ``256 tok`` or ``512 KiB``."""
    if budget is None:
        return ""
    parsed = Budget.parse(budget)
    if parsed.kind == "share":
        return f"{100 * parsed.value:g}%"
    return f"{parsed.value} tok" if parsed.kind == "tokens" else str(parsed)


def label(spec: str | None) -> str:
    """A policy or an allocator as it is named in tables and legends."""
    return "full cache" if spec is None else Spec.parse(spec).label


def is_continuation(cell: Cell) -> bool:
    """Whether it is about likelihoods, not about answers."""
    return bool(cell["kind"] == "continuation")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(cell: Cell) -> str:
    return "–" if cell["low"] is None else f"{100 * cell['low']:.0f}-{100 * cell['high']:.0f}"


def _difference(cell: Cell) -> str:
    found = cell["minus_uniform"]
    return "" if found is None else f"{100 * found['score']:+.1f}{'*' if is_clear(found) else ' '}"


def _difference_interval(cell: Cell) -> str:
    found = cell["minus_uniform"]
    if found is None or found["low"] is None:
        return ""
    return f"{100 * found['low']:+.0f} to {100 * found['high']:+.0f}"


def _optional(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _failed(cell: Cell) -> str:
    return str(cell["n_failed"]) if cell["n_failed"] else ""


COLUMNS = (
    Column("policy", lambda cell: label(cell["policy"]), right=False),
    Column("budget", lambda cell: budget_label(cell["budget"])),
    Column("layers", lambda cell: "" if cell["allocator"] is None else label(cell["allocator"]), right=False),
    Column("score", lambda cell: _percent(cell["score"])),
    Column("95 %", _interval),
    Column("-uniform", _difference),
    Column("KV held", lambda cell: bytes_text(cell["bytes"])),
    Column("of full", lambda cell: "–" if cell["share"] is None else f"{cell['share']:.0%}", from_width=92),
    Column("95 %", _difference_interval, from_width=106),
    Column("peak", lambda cell: bytes_text(cell["peak_bytes"]), from_width=118),
    Column("at cut", lambda cell: bytes_text(cell["cut_bytes"]), from_width=130),
    Column("questions", lambda cell: f"{cell['n_questions']} in {cell['n_samples']}", from_width=144),
    Column("answer", lambda cell: _optional(cell["answer_tokens"], 1), from_width=154),
    Column("failed", _failed, from_width=162),
)

#: For likelihoods of continuations: nothing was generated, so nothing has a length.
CONTINUATION_COLUMNS = tuple(
    Column("nats", lambda cell: _optional(cell["nats_per_token"], 3)) if column.title == "answer" else column
    for column in COLUMNS
)


def columns_for(cells: Sequence[Cell]) -> tuple[Column, ...]:
    """The columns that say something of these entries."""
    return CONTINUATION_COLUMNS if any(is_continuation(cell) for cell in cells) else COLUMNS


#: Of the entries of a summary's ``against_uniform``.
WIN_COLUMNS = (
    Column("against uniform", lambda entry: label(entry["allocator"]), right=False),
    Column("scored by", lambda entry: "likelihood" if is_continuation(entry) else "answers", right=False),
    Column("pairs", lambda entry: str(entry["pairs"])),
    Column("better", lambda entry: str(entry["better"])),
    Column("worse", lambda entry: str(entry["worse"])),
    Column("unclear", lambda entry: str(entry["pairs"] - entry["better"] - entry["worse"])),
    Column("mean", lambda entry: f"{100 * entry['mean']:+.1f}"),
)
WIN_LEGEND = (
    "A pair is a task, length, policy and budget; better and worse where the interval of the difference leaves out 0, "
    "which 1 in 20 does by chance. mean: of the differences, in points."
)

LEGEND = (
    "score: mean of the questions in percent (a continuation: 1 / perplexity), bootstrap interval over contexts. "
    "-uniform: difference from uniform budgets of the same size on the same questions, * where its interval leaves out "
    "0. KV held: measured bytes of keys and values of a sequence at the end of its answer; at cut: before that. "
    "answer: mean tokens; nats: loss of a token. A failure scores 0."
)

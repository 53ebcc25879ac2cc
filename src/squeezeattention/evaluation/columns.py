"""The columns of a results table, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from ..allocators import names_file
from ..plan import Budget
from .spec import Spec
from .summary import CONTINUATION, gain, is_clear

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


def labels(specs: Iterable[str | None]) -> dict[str | None, str]:
    """:func:`label` of each, but of files only the end of the path, as much of it as no other one has."""
    texts = list(dict.fromkeys(specs))
    parsed = {text: Spec.parse(text) for text in texts if text is not None}
    paths = {text: PurePath(spec.name).parts for text, spec in parsed.items() if names_file(spec.name)}
    found = {text: label(text) for text in texts}
    for text, parts in paths.items():
        others = [other for one, other in paths.items() if one != text and parsed[one].options == parsed[text].options]
        count = next((n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        if count < len(parts):
            found[text] = replace(parsed[text], name=str(PurePath("…", *parts[-count:]))).label
    return found


def is_continuation(cell: Cell) -> bool:
    """Whether it is about likelihoods, not about answers."""
    return bool(cell["kind"] == CONTINUATION)


def _signed(value: float, digits: int) -> str:
    """With its sign, unless it is none after rounding."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(cell: Cell) -> str:
    return "–" if cell["low"] is None else f"{100 * cell['low']:.0f}-{100 * cell['high']:.0f}"


def _difference(name: str, factor: float, digits: int) -> Callable[[Cell], str]:
    """The text of a difference from uniform budgets, of the value of this name."""

    def text(cell: Cell) -> str:
        found = cell["minus_uniform"]
        if found is None or found[name] is None:
            return ""
        return f"{_signed(factor * found[name], digits)}{'*' if is_clear(gain(found)) else ' '}"

    return text


def _difference_interval(prefix: str, factor: float, digits: int) -> Callable[[Cell], str]:
    """... and of its interval."""

    def text(cell: Cell) -> str:
        found = cell["minus_uniform"]
        if found is None or found[f"{prefix}low"] is None:
            return ""
        return (
            f"{_signed(factor * found[f'{prefix}low'], digits)} to {_signed(factor * found[f'{prefix}high'], digits)}"
        )

    return text


def _nats(cell: Cell) -> str:
    return "–" if cell["nats_per_token"] is None else f"{cell['nats_per_token']:.3f}"


def _nats_interval(cell: Cell) -> str:
    return "–" if cell["nats_low"] is None else f"{cell['nats_low']:.2f}-{cell['nats_high']:.2f}"


def _optional(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _failed(cell: Cell) -> str:
    return str(cell["n_failed"]) if cell["n_failed"] else ""


_SCORES = (
    Column("score", lambda cell: _percent(cell["score"])),
    Column("95 %", _interval),
    Column("-uniform", _difference("score", 100, 1)),
)
#: For likelihoods of continuations: nothing was generated, so nothing has a length.
_LOSSES = (
    Column("nats", _nats),
    Column("95 %", _nats_interval),
    Column("-uniform", _difference("nats", 1, 3)),
)


def columns_for(cells: Sequence[Cell]) -> tuple[Column, ...]:
    """The columns that say something of these entries, all of one kind."""
    names = labels(cell["allocator"] for cell in cells)
    losses = any(is_continuation(cell) for cell in cells)
    answers = () if losses else (
        Column("answer", lambda cell: _optional(cell["answer_tokens"], 1), from_width=154),
    )  # fmt: skip
    between = _difference_interval("nats_", 1, 3) if losses else _difference_interval("", 100, 1)
    # On the narrowest terminal too: a score counts failures as 0, and a loss leaves them out.
    some_failed = any(cell["n_failed"] for cell in cells)
    return (
        Column("policy", lambda cell: label(cell["policy"]), right=False),
        Column("budget", lambda cell: budget_label(cell["budget"])),
        Column("layers", lambda cell: "" if cell["allocator"] is None else names[cell["allocator"]], right=False),
        *(_LOSSES if losses else _SCORES),
        Column("KV held", lambda cell: bytes_text(cell["bytes"])),
        Column("of full", lambda cell: "–" if cell["share"] is None else f"{cell['share']:.0%}", from_width=92),
        Column("-uniform, 95 %", between, from_width=110),
        Column("peak", lambda cell: bytes_text(cell["peak_bytes"]), from_width=122),
        Column("at cut", lambda cell: bytes_text(cell["cut_bytes"]), from_width=134),
        Column("questions", lambda cell: f"{cell['n_questions']} in {cell['n_samples']}", from_width=148),
        *answers,
        Column("failed", _failed, from_width=0 if some_failed else 166),
    )


def win_columns(entries: Sequence[Cell]) -> tuple[Column, ...]:
    """The columns of a summary's ``against_uniform``."""
    names = labels(entry["allocator"] for entry in entries)
    return (
        Column("against uniform", lambda entry: names[entry["allocator"]], right=False),
        Column("scored by", lambda entry: "likelihood" if is_continuation(entry) else "answers", right=False),
        Column("pairs", lambda entry: str(entry["pairs"])),
        Column("better", lambda entry: str(entry["better"])),
        Column("worse", lambda entry: str(entry["worse"])),
        Column("unclear", lambda entry: str(entry["pairs"] - entry["better"] - entry["worse"])),
        Column("mean", _mean),
    )


def _mean(entry: Cell) -> str:
    return f"{_signed(entry['mean'], 3)} nats" if is_continuation(entry) else _signed(100 * entry["mean"], 1)


WIN_LEGEND = (
    "A pair is a task, length, policy and budget; better and worse where the interval of the difference leaves out 0, "
    "which 1 in 20 does by chance. mean: of the differences, in points; of losses in nats a token, less is better."
)

LEGEND = (
    "score: mean of the questions in percent; nats: mean loss of a continuation's token, less is better. Bootstrap "
    "intervals over contexts. -uniform: difference from uniform budgets of the same size on the same questions, * "
    "where its interval leaves out 0. KV held: measured bytes of keys and values of a sequence at the end of its "
    "answer; at cut: before that. answer: mean tokens. A failure scores 0, and has no loss: nats are of those that "
    "did not fail."
)

"""What a summary shows, in sentences that follow from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bootstrap import LEAST_CONTEXTS
from .columns import Cell, bytes_text, is_continuation
from .exercises import is_overlap
from .summary import ALL

_MANY_CONTEXTS = 20
_WEAK = 0.5  # score of the full cache below which differences say little


def verdicts(summary: Mapping[str, Any]) -> list[str]:
    """On completeness, failures, the full cache, and on how much the intervals can be trusted."""
    missing = summary["expected"] - summary["rows"]
    failed = sum(error["n"] for error in summary["errors"])
    parts = []
    if missing:
        parts.append(f"The run is not finished: {missing} of {summary['expected']} rows are missing.")
    if failed:
        worst = max(summary["errors"], key=lambda error: error["n"])
        parts.append(f"{failed} rows failed and count as 0, most often with {worst['type']}: {worst['text']}")
    cells = [cell for cell in summary["results"] if cell["task"] != ALL]
    return [*parts, *_about_full(cells), *_about_chance(summary), *_about_contexts(cells)]


def _about_chance(summary: Mapping[str, Any]) -> list[str]:
    near = summary["near_chance"]
    named = ", ".join(
        f"{one['task']} at {one['length']:,} ({one['score']:.0%}, guessing {one['chance']:.0%})" for one in near
    )
    return [f"Near chance with the full cache, so left out of the mean over tasks: {named}."] if near else []


def _about_full(cells: Sequence[Cell]) -> list[str]:
    full = [cell for cell in cells if cell["policy"] is None]
    if not full:
        return []
    scores = ", ".join(
        f"{_level(cell)} on {cell['task']} at {cell['length']:,} ({bytes_text(cell['bytes'])})" for cell in full
    )
    weak = dict.fromkeys(
        cell["task"] for cell in full
        if not is_continuation(cell) and not is_overlap(cell["task"]) and cell["score"] < _WEAK
    )  # fmt: skip
    text = f"The full cache scores {scores}."
    if weak:
        text += f" Where it is below {_WEAK:.0%} ({', '.join(weak)}), differences say little about any method."
    return [text]


def _level(cell: Cell) -> str:
    nats = cell["nats_per_token"]
    return f"{100 * cell['score']:.0f} %" if nats is None else f"{nats:.2f} nats a token"


def _about_contexts(cells: Sequence[Cell]) -> list[str]:
    fewest = min((cell["n_samples"] for cell in cells), default=0)
    if fewest >= _MANY_CONTEXTS:
        return []
    if fewest < LEAST_CONTEXTS:
        contexts = "context" if fewest == 1 else "contexts"
        return [f"Some results rest on {fewest} {contexts}: no interval is given for fewer than {LEAST_CONTEXTS}."]
    return [f"Intervals rest on as few as {fewest} contexts and are too narrow rather than too wide."]

"""The tables of docs/results.md, from the records in ``eval``: ``python benchmarks/tables.py [--model NAME ...]``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from results import RULES

HERE = Path(__file__).parent / "eval"


def _summary(model: str, name: str) -> dict[str, Any] | None:
    path = HERE / f"{model}-{name}" / "summary.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def _cells(summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Results of single tasks, but for the full cache's."""
    return (cell for cell in summary["results"] if cell["task"] != "all" and cell["policy"] is not None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def _score(cell: dict[str, Any]) -> str:
    if cell["nats_per_token"] is not None:
        return f"{cell['nats_per_token']:.2f}"
    return f"{100 * cell['score']:.0f} ({100 * cell['low']:.0f}-{100 * cell['high']:.0f})"


def full(model: str, name: str) -> None:
    """What the full cache scores."""
    summary = _summary(model, name)
    if summary is not None:
        found = [cell for cell in summary["results"] if cell["policy"] is None and cell["task"] != "all"]
        print(f"\n{model} {name}, full cache:", "; ".join(f"{cell['task']} {_score(cell)}" for cell in found))


def grid(model: str, name: str, column: str) -> None:
    """A row for each task, policy and allocator, a column for each value of ``column``."""
    summary = _summary(model, name)
    if summary is None:
        return
    cells = list(_cells(summary))
    values = list(dict.fromkeys(cell[column] for cell in cells))
    rows: dict[tuple[str, ...], dict[Any, str]] = {}
    for cell in cells:
        named = {**cell, "allocator": re.sub(r"[:,]p=[\d.]+$", "", cell["allocator"])}
        key = tuple(str(named[what]) for what in ("task", "length", "policy", "allocator") if what != column)
        rows.setdefault(key, {})[cell[column]] = _score(cell)
    full(model, name)
    _table(["task", "tokens", "policy", *(["allocator"] if column != "allocator" else []), *map(str, values)],
           [[*key, *(row.get(value, "") for value in values)] for key, row in rows.items()])  # fmt: skip


def needed(models: Sequence[str]) -> None:
    """Bytes from which on a share of the full score is kept, and against what uniform budgets need."""
    rows = []
    for model in models:
        summary = _summary(model, "bytes")
        if summary is None:
            continue
        whole = {(one["task"], one["length"]): one["bytes"] for one in summary["results"] if one["policy"] is None}
        by_key = {
            (one["task"], one["length"], one["policy"], one["share"], one["allocator"]): one
            for one in summary["reach"] if one["task"] != "all"
        }  # fmt: skip
        for (*where, allocator), own in by_key.items():
            if allocator == "uniform":
                continue
            task, length, policy, share = where
            uniform, size = by_key[task, length, policy, share, "uniform"], whole[task, length]
            largest = max(
                cell["bytes"] for cell in _cells(summary)
                if [cell[k] for k in ("task", "length", "policy", "allocator")] == [task, length, policy, "uniform"]
            )  # fmt: skip
            rows.append([model, task, str(length), policy, f"{share:.0%}", allocator, _bytes(own, size),
                         _bytes(uniform, size), _ratio(own, uniform, size, largest)])  # fmt: skip
    _table(["model", "task", "tokens", "policy", "of full", "allocator", "needs", "uniform needs", "ratio"], rows)


def _bytes(one: dict[str, Any], whole: float) -> str:
    if one["bytes"] is None:
        return one["status"].replace("_", " ")
    return f"{'at most ' if one['status'] == 'at_most' else ''}{one['bytes'] / whole:.0%}"


def _ratio(own: dict[str, Any], uniform: dict[str, Any], whole: float, largest: float) -> str:
    """``largest``: the most bytes that uniform budgets were measured with; they need no more than the full cache."""
    if own["bytes"] is None:
        return "-"
    if uniform["bytes"] is None:
        return f"{own['bytes'] / whole:.2f} to {own['bytes'] / largest:.2f}"
    return f"{'at most ' if own['status'] == 'at_most' else ''}{own['bytes'] / uniform['bytes']:.2f}"


def stability(model: str) -> None:
    """How far prompts' own plans are from each other, and from a frozen one: shares of the cache that would move."""
    for rule in RULES:
        path = HERE / f"{model}-stability-{rule}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text())["stability"]
        moved = {fit["against"]: f"{fit['moved']:.1%} (worst {fit['worst']:.1%})" for fit in found["fits"]}
        within, between = found["within"], found["between"]
        print(
            f"\n{model} {rule}: rank correlation of two prompts, same task {within['spearman']:.2f}, other task "
            f"{between['spearman']:.2f}; same groups {found['all']['agreement']['same_layers']}; moved: {moved}"
        )


def oracle(model: str) -> None:
    """Which signal ranks the layers as cutting each alone does."""
    path = HERE / f"{model}-oracle.json"
    if path.is_file():
        found = json.loads(path.read_text())
        print(f"\n{model}: nats that cutting a layer adds:", ", ".join(f"{value:+.2f}" for value in found["added"]))
        _table(["signal", "rank correlation", "importance"],
               [[one["signal"], f"{one['alone']:+.2f}", " ".join(f"{value:.2f}" for value in one["importance"])]
                for one in sorted(found["signals"], key=lambda one: -one["alone"])])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["embedded", "depth4", "depth12"])
    args = parser.parse_args()
    for model in args.model:
        grid(model, "quick", "budget")
        grid(model, "bytes", "budget")
        grid(model, "whole", "budget")
        grid(model, "ruler", "allocator")
        grid(model, "p", "p")
        grid(model, "allocators", "allocator")
        grid(model, "tasks", "budget")
        grid(model, "frozen", "budget")
        grid(model, "bounded", "budget")
        stability(model)
        oracle(model)
    needed(args.model)


if __name__ == "__main__":
    main()

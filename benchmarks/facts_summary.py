"""What the record of benchmarks/facts.py says, for its own output and for the tables of the docs."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Line(NamedTuple):
    """One way to cut the cache."""

    cache: str
    share: float
    """Of the full cache's bytes, measured."""
    right: float
    """Of the questions."""
    kept: float
    """Of the full cache's right answers, and a 95 % interval of that (bootstrap over texts)."""
    low: float
    high: float
    nats: float
    """More than the full cache's, a token of what follows."""


def full_of(record: dict[str, Any]) -> tuple[int, int, float]:
    """Texts, questions, and the full cache's share of right answers."""
    rows = [row for row in record["rows"] if row["cache"] == "full"]
    answers = [right for row in rows for right in row["right"]]
    return len(rows), len(answers), statistics.fmean(answers)


def lines_of(record: dict[str, Any]) -> list[Line]:
    full = {row["text"]: row for row in record["rows"] if row["cache"] == "full"}
    found = []
    for cache, budget in dict.fromkeys((row["cache"], row["budget"]) for row in record["rows"]):
        if budget is None:
            continue
        rows = [row for row in record["rows"] if (row["cache"], row["budget"]) == (cache, budget)]
        right = [statistics.fmean(row["right"]) for row in rows]
        base = [statistics.fmean(full[row["text"]]["right"]) for row in rows]
        low, high = bootstrap(right, base)
        found.append(
            Line(
                cache,
                statistics.fmean(row["bytes"] / full[row["text"]]["bytes"] for row in rows),
                statistics.fmean(right),
                sum(right) / max(1e-9, sum(base)),
                low,
                high,
                statistics.fmean(row["nats"] - full[row["text"]]["nats"] for row in rows),
            )
        )
    return found


def bootstrap(right: Sequence[float], base: Sequence[float], rounds: int = 2000) -> tuple[float, float]:
    """95 % interval of the ratio of two means over the same texts."""
    rng, ratios = random.Random(0), []
    for _ in range(rounds):
        chosen = [rng.randrange(len(right)) for _ in right]
        ratios.append(sum(right[i] for i in chosen) / max(1e-9, sum(base[i] for i in chosen)))
    ratios.sort()
    return ratios[int(0.025 * rounds)], ratios[int(0.975 * rounds)]

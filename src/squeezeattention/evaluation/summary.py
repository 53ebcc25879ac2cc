"""What the rows of a run say: scores with intervals, bytes, differences. No timings, so that it can be repeated."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plan.codec import DIRECTION
from .bootstrap import LEAST_CONTEXTS, LEVEL, RESAMPLES, SEED, bootstrap, differences
from .config import UNIFORM, Config
from .folder import read_rows, read_run, write_json
from .grid import FULL, Settings
from .reach import SHARES, bytes_to_reach
from .reading import signal_values_of
from .spec import Spec

SUMMARY = "summary.json"
ALL = "all tasks"

Row = Mapping[str, Any]
_DIGITS = 6


def summarize(folder: Path) -> dict[str, Any]:
    """The summary of a folder of results, finished or not; raises :class:`EvaluationError`."""
    return summary_of(read_run(folder), read_rows(folder))


def write_summary(folder: Path) -> dict[str, Any]:
    """:func:`summarize`, and ``summary.json`` beside the results."""
    summary = summarize(folder)
    write_json(folder / SUMMARY, summary)
    return summary


def summary_of(run: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of ``rows``, which are sorted by id."""
    settings = Settings.from_dict(run["settings"])
    configs = settings.configs()
    expected = len(settings.samples_of_all()) * len(configs)
    table = _Table(rows)
    cells = [
        cell
        for length in settings.lengths
        for name, tasks in _task_groups(settings, table, length)
        for cell in _cells(table, name, tasks, length, configs)
    ]
    return {
        "settings": run["settings"],
        "model": run["model"],
        "split": run["data"]["split"],
        "metrics": run["data"]["metrics"],
        "rows": len(rows),
        "expected": expected,
        "bootstrap": {
            "over": "contexts",
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
            "least_contexts": LEAST_CONTEXTS,
        },
        "results": cells,
        "against_uniform": _wins(cells),
        "reach": _reach(cells),
        "signals": _signals(rows),
        "signal_direction": DIRECTION,
        "errors": _errors(rows),
    }


class _Table:
    """Rows by task, length and configuration, each list in the order of its samples."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[tuple[str, int, str], list[Row]] = defaultdict(list)
        for row in rows:
            self._rows[row["task"], row["length"], row["config"]["id"]].append(row)

    def rows(self, task: str, length: int, config: Config) -> list[Row]:
        return self._rows.get((task, length, config.id), [])


def _task_groups(settings: Settings, table: _Table, length: int) -> list[tuple[str, list[str]]]:
    """Each task, after all those with questions together (likelihoods are on another scale)."""
    asked = [
        task for task in settings.tasks if any(row["kind"] == "questions" for row in table.rows(task, length, FULL))
    ]
    together = [(ALL, asked)] if len(asked) > 1 else []
    return [*together, *((task, [task]) for task in settings.tasks)]


def _cells(
    table: _Table, name: str, tasks: Sequence[str], length: int, configs: Sequence[Config]
) -> list[dict[str, Any]]:
    """One entry for each configuration that has results of all ``tasks``."""
    cells = []
    for config in configs:
        strata = [table.rows(task, length, config) for task in tasks]
        if not all(strata):
            continue
        cells.append({
            "task": name, "length": length, **_identity(config), **_scores(strata), **_sizes(strata),
            "minus_uniform": _against_uniform(table, tasks, length, config),
        })  # fmt: skip
    return cells


def _identity(config: Config) -> dict[str, Any]:
    return {**config.to_dict(), "p": config.p}


def _scores(strata: Sequence[Sequence[Row]]) -> dict[str, Any]:
    found = bootstrap([[row["scores"] for row in rows] for rows in strata])
    rows = [row for rows in strata for row in rows]
    losses = [loss for row in rows for loss in row["losses"] or ()]
    lengths = [length for row in rows for length in row["answer_tokens"] or ()]
    return {
        "kind": rows[0]["kind"],
        "n_samples": len(rows),
        "n_questions": sum(len(row["scores"]) for row in rows),
        "n_failed": sum(row["error"] is not None for row in rows),
        "score": _rounded(found.mean),
        "low": _rounded(found.low),
        "high": _rounded(found.high),
        "nats_per_token": _rounded(statistics.fmean(losses)) if losses else None,
        "answer_tokens": _rounded(statistics.fmean(lengths)) if lengths else None,
    }


def _sizes(strata: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Mean bytes of the samples that did not fail, ``None`` if all of a task did; share of the full cache."""
    names = ("bytes", "full_bytes", "index_bytes", "cut_bytes", "peak_bytes")
    means: dict[str, float | None] = {}
    for name in names:
        found = [[row[name] for row in rows if row[name] is not None] for rows in strata]
        whole = all(found)
        means[name] = _rounded(statistics.fmean(map(statistics.fmean, found))) if whole else None
    held, full = means["bytes"], means["full_bytes"]
    return {**means, "share": None if held is None or not full else _rounded(held / full)}


def _against_uniform(table: _Table, tasks: Sequence[str], length: int, config: Config) -> dict[str, Any] | None:
    """Paired difference from uniform budgets, with the same policy and budget, on the samples that both have."""
    if config.policy is None or config.allocator is None or config.allocator.name == UNIFORM:
        return None
    baseline = Config(config.policy, Spec(UNIFORM), config.budget)
    strata = []
    for task in tasks:
        others = {_sample(row): row["scores"] for row in table.rows(task, length, baseline)}
        both = [row for row in table.rows(task, length, config) if _sample(row) in others]
        if not both:
            return None
        strata.append(differences([row["scores"] for row in both], [others[_sample(row)] for row in both]))
    found = bootstrap(strata)
    return {
        "n_samples": sum(map(len, strata)),
        "score": _rounded(found.mean),
        "low": _rounded(found.low),
        "high": _rounded(found.high),
    }


def is_clear(difference: Mapping[str, Any] | None) -> bool:
    """Whether a difference's interval leaves out 0."""
    return difference is not None and difference["low"] is not None and not difference["low"] <= 0 <= difference["high"]


def _wins(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often each allocator is clearly better or worse than uniform; likelihoods are on a scale of their own."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        if cell["minus_uniform"] is not None and cell["task"] != ALL:
            groups[cell["kind"], cell["allocator"]].append(cell["minus_uniform"])
    return [
        {
            "kind": kind, "allocator": allocator, "pairs": len(pairs),
            "better": sum(is_clear(pair) and pair["score"] > 0 for pair in pairs),
            "worse": sum(is_clear(pair) and pair["score"] < 0 for pair in pairs),
            "mean": _rounded(statistics.fmean(pair["score"] for pair in pairs)),
        }
        for (kind, allocator), pairs in groups.items()
    ]  # fmt: skip


def _reach(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bytes for some shares of the full cache's score, by task, policy and allocator."""
    lines: dict[tuple[str, int, str, str], list[tuple[float, float]]] = defaultdict(list)
    full: dict[tuple[str, int], float] = {}
    for cell in cells:
        if cell["policy"] is None:
            full[cell["task"], cell["length"]] = cell["score"]
        elif cell["bytes"] is not None:
            line = cell["task"], cell["length"], cell["policy"], cell["allocator"]
            lines[line].append((cell["bytes"], cell["score"]))
    found = []
    for (task, length, policy, allocator), points in lines.items():
        for share in SHARES:
            if (task, length) not in full:
                continue
            target = share * full[task, length]
            reach = bytes_to_reach(points, target)
            found.append({
                "task": task, "length": length, "policy": policy, "allocator": allocator, "share": share,
                "target": _rounded(target), "status": reach.status, "bytes": _rounded(reach.bytes),
            })  # fmt: skip
    return found


def _signals(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean of each signal by layer, by task and length, every sample counted once."""
    seen: dict[tuple[str, str, int], dict[tuple[int, int], list[float]]] = defaultdict(dict)
    for row in rows:
        for plan in row["plans"] or ():
            if (values := signal_values_of(plan)) is not None:
                seen[plan["signal"], row["task"], row["length"]].setdefault(_sample(row), values)
    return [
        {
            "signal": signal, "task": task, "length": length, "n_samples": len(samples),
            "mean": [_rounded(statistics.fmean(layer)) for layer in zip(*samples.values(), strict=True)],
        }
        for (signal, task, length), samples in sorted(seen.items())
    ]  # fmt: skip


def _errors(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every kind of failure, how often it came, and where first."""
    failed = [row for row in rows if row["error"] is not None]
    counts = Counter((row["error"]["type"], row["error"]["text"]) for row in failed)
    first: dict[tuple[str, str], str] = {}
    for row in failed:
        first.setdefault((row["error"]["type"], row["error"]["text"]), row["id"])
    return [{"type": key[0], "text": key[1], "n": count, "first": first[key]} for key, count in sorted(counts.items())]


def _sample(row: Row) -> tuple[int, int]:
    """Which of the samples of a task and length it is."""
    return row["seed"], row["index"]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)

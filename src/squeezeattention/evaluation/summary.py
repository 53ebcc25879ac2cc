"""What the rows of a run say: scores with intervals, bytes, differences. No timings, so that it can be repeated."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plan.codec import DIRECTION
from .bootstrap import LEAST_CONTEXTS, LEVEL, RESAMPLES, SEED, Mean, bootstrap, differences
from .config import UNIFORM, Config
from .exercises import chance_of, near_chance_below
from .folder import read_rows, read_run, write_json
from .grid import FULL, Settings
from .reach import SHARES, bytes_to_reach
from .reading import signal_values_of
from .spec import Spec

SUMMARY = "summary.json"
ALL = "all tasks"
#: The kind of rows that are about likelihoods, not about answers.
CONTINUATION = "continuation"

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
    near = _near_chance(settings, table)
    cells = [
        cell
        for length in settings.lengths
        for name, tasks in _task_groups(settings, table, length, near)
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
        "near_chance": near,
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


def _task_groups(settings: Settings, table: _Table, length: int, near: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Each task, after all those with questions together (likelihoods are on another scale) in which the full cache is
    better than chance: of what a model cannot do, no cache loses anything."""
    out = {one["task"] for one in near if one["length"] == length}
    asked = [task for task in settings.tasks if task not in out and _full_score(table, task, length) is not None]
    together = [(ALL, asked)] if len(asked) > 1 else []
    return [*together, *((task, [task]) for task in settings.tasks)]


def _near_chance(settings: Settings, table: _Table) -> list[dict[str, Any]]:
    """Tasks in which the full cache is hardly better than naming things at random."""
    found = []
    for length in settings.lengths:
        for task in settings.tasks:
            score = _full_score(table, task, length)
            if score is not None and score < near_chance_below(task):
                found.append({"task": task, "length": length, "score": _rounded(score), "chance": chance_of(task)})
    return found


def _full_score(table: _Table, task: str, length: int) -> float | None:
    """The full cache's mean; ``None`` for likelihoods and where there is no row."""
    rows = [row for row in table.rows(task, length, FULL) if row["kind"] == "questions"]
    return statistics.fmean(score for row in rows for score in row["scores"]) if rows else None


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
            **_added(table, tasks, length, config), "minus_uniform": _against_uniform(table, tasks, length, config),
        })  # fmt: skip
    return cells


def _identity(config: Config) -> dict[str, Any]:
    return {**config.to_dict(), "p": config.p}


def _scores(strata: Sequence[Sequence[Row]]) -> dict[str, Any]:
    found = bootstrap([[row["scores"] for row in rows] for rows in strata])
    losses = _nats([[row["losses"] for row in rows if row["losses"] is not None] for rows in strata])
    rows = [row for rows in strata for row in rows]
    lengths = [length for row in rows for length in row["answer_tokens"] or ()]
    return {
        "kind": rows[0]["kind"],
        "n_samples": len(rows),
        "n_questions": sum(len(row["scores"]) for row in rows),
        "n_failed": sum(row["error"] is not None for row in rows),
        "score": _rounded(found.mean),
        "low": _rounded(found.low),
        "high": _rounded(found.high),
        "nats_per_token": losses["nats"],
        "nats_low": losses["nats_low"],
        "nats_high": losses["nats_high"],
        "answer_tokens": _rounded(statistics.fmean(lengths)) if lengths else None,
    }


def _nats(strata: Sequence[Sequence[Sequence[float]]]) -> dict[str, float | None]:
    """Mean loss with its interval; ``None`` where there are none: a failure has no loss, as bad as it may be."""
    found = bootstrap(strata) if all(strata) else None
    if found is None:
        return {"nats": None, "nats_low": None, "nats_high": None}
    return {"nats": _rounded(found.mean), "nats_low": _rounded(found.low), "nats_high": _rounded(found.high)}


def _added(table: _Table, tasks: Sequence[str], length: int, config: Config) -> dict[str, float | None]:
    """Mean loss beyond the full cache's on the same contexts, of which some are harder than others by far more."""
    strata = []
    for task in tasks:
        full = {_sample(row): row["losses"] for row in table.rows(task, length, FULL) if row["losses"] is not None}
        own = [row for row in table.rows(task, length, config) if row["losses"] is not None and _sample(row) in full]
        strata.append(differences([row["losses"] for row in own], [full[_sample(row)] for row in own]))
    found = _nats(strata)
    return {"nats_added": found["nats"], "nats_added_low": found["nats_low"], "nats_added_high": found["nats_high"]}


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
    """Paired difference from uniform budgets, with the same policy and budget, on the samples that both have.

    Of continuations also that of the losses, on the samples where neither failed.
    """
    if config.policy is None or config.allocator is None or config.allocator.name == UNIFORM:
        return None
    baseline = Config(config.policy, Spec(UNIFORM), config.budget)
    strata, losses = [], []
    for task in tasks:
        others = {_sample(row): row for row in table.rows(task, length, baseline)}
        both = [row for row in table.rows(task, length, config) if _sample(row) in others]
        if not both:
            return None
        pairs = [(row, others[_sample(row)]) for row in both]
        strata.append(differences([a["scores"] for a, _ in pairs], [b["scores"] for _, b in pairs]))
        known = [(a["losses"], b["losses"]) for a, b in pairs if None not in (a["losses"], b["losses"])]
        losses.append(differences([a for a, _ in known], [b for _, b in known]))
        continuation = both[0]["kind"] == CONTINUATION
    found = bootstrap(strata)
    return {
        "n_samples": sum(map(len, strata)),
        "score": _rounded(found.mean),
        "low": _rounded(found.low),
        "high": _rounded(found.high),
        **(_nats(losses) if continuation else {}),
    }


def gain(difference: Mapping[str, Any] | None) -> Mean | None:
    """What a difference from uniform budgets says, up = better: of scores, or of losses where there are any."""
    if difference is None:
        return None
    if "nats" not in difference:
        return Mean(difference["score"], difference["low"], difference["high"])
    mean, low, high = difference["nats"], difference["nats_low"], difference["nats_high"]
    if mean is None:
        return None
    return Mean(-mean, None if high is None else -high, None if low is None else -low)


def is_clear(found: Mean | None) -> bool:
    """Whether an interval leaves out 0."""
    return found is not None and found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def _wins(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often each allocator is clearly better or worse than uniform; ``mean`` is in nats for continuations."""
    groups: dict[tuple[str, str], list[Mean]] = defaultdict(list)
    for cell in cells:
        if cell["task"] != ALL and (found := gain(cell["minus_uniform"])) is not None:
            groups[cell["kind"], cell["allocator"]].append(found)
    return [
        {
            "kind": kind, "allocator": allocator, "pairs": len(pairs),
            "better": sum(is_clear(pair) and pair.mean > 0 for pair in pairs),
            "worse": sum(is_clear(pair) and pair.mean < 0 for pair in pairs),
            "mean": _rounded(_sign(kind) * statistics.fmean(pair.mean for pair in pairs)),
        }
        for (kind, allocator), pairs in groups.items()
    ]  # fmt: skip


def _sign(kind: str) -> int:
    return -1 if kind == CONTINUATION else 1


def _quality(cell: Mapping[str, Any]) -> float | None:
    """What budgets are held against the full cache by: the score, or the mean probability of a continuation's token."""
    if cell["kind"] != CONTINUATION:
        score: float = cell["score"]
        return score
    return None if cell["nats_per_token"] is None else math.exp(-cell["nats_per_token"])


def _reach(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bytes for some shares of the full cache's score, by task, policy and allocator."""
    lines: dict[tuple[str, int, str, str], list[tuple[float, float]]] = defaultdict(list)
    full: dict[tuple[str, int], float] = {}
    kinds = {cell["task"]: cell["kind"] for cell in cells}
    for cell in cells:
        quality = _quality(cell)
        if quality is None:
            continue
        if cell["policy"] is None:
            full[cell["task"], cell["length"]] = quality
        elif cell["bytes"] is not None:
            line = cell["task"], cell["length"], cell["policy"], cell["allocator"]
            lines[line].append((cell["bytes"], quality))
    found = []
    for (task, length, policy, allocator), points in lines.items():
        for share in SHARES:
            if (task, length) not in full:
                continue
            target = share * full[task, length]
            reach = bytes_to_reach(points, target)
            found.append({
                "task": task, "length": length, "policy": policy, "allocator": allocator, "kind": kinds[task],
                "share": share, "target": _rounded(target), "status": reach.status, "bytes": _rounded(reach.bytes),
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

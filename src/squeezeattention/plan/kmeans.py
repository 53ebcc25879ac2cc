"""Exact one-dimensional K-Means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from ..errors import ConfigError

MIN_SPREAD = 1e-6
"""Values that lie closer together than this are noise, not groups."""


def kmeans_1d(values: Sequence[float], k: int) -> list[int]:
    """Group of every value (0 to k - 1, ordered by ascending centroid), in input order.

    Optimal and deterministic: in one dimension the best groups are contiguous, so dynamic programming over
    the sorted distinct values finds them in O(k n^2). Equal values always share a group. Fewer than ``k``
    distinct values, or a spread below ``MIN_SPREAD``, have no ``k`` groups: all zeros.

    Raises :class:`ConfigError` for ``k < 1`` and for values that are not finite.
    """
    if k < 1:
        raise ConfigError(f"K-Means needs k >= 1, got {k}")
    if bad := [value for value in values if not math.isfinite(value)]:
        raise ConfigError(f"K-Means needs finite values, got {bad[0]} among {len(values)} values")
    distinct = sorted(set(values))
    if len(distinct) < max(k, 2) or distinct[-1] - distinct[0] < MIN_SPREAD:
        return [0] * len(values)
    weights = [0] * len(distinct)
    index = {value: i for i, value in enumerate(distinct)}
    for value in values:
        weights[index[value]] += 1
    starts = _best_starts(_scatter(_unit_range(distinct), weights), k)
    marks = [0] * len(distinct)
    for start in starts[1:]:
        marks[start] = 1
    group_of = list(accumulate(marks))
    return [group_of[index[value]] for value in values]


def _unit_range(points: list[float]) -> list[float]:
    """Sorted points moved to [0, 1]: no offset or scale is left to cancel or overflow."""
    low, high = points[0] / 2, points[-1] / 2
    return [(point / 2 - low) / (high - low) for point in points]


def _scatter(points: list[float], weights: list[int]) -> list[list[float]]:
    """``scatter[i][j - i]``: the squared distances of points i..j to their mean.

    Welford's update sums terms that are never negative, where a difference of prefix sums would cancel.
    """
    rows = []
    for start in range(len(points)):
        weight, mean, cost, row = 0, 0.0, 0.0, []
        for point, count in zip(points[start:], weights[start:], strict=True):
            weight += count
            delta = point - mean
            mean += delta * count / weight
            cost += count * delta * (point - mean)
            row.append(cost)
        rows.append(row)
    return rows


def _best_starts(scatter: list[list[float]], k: int) -> list[int]:
    """First index of each of the ``k`` groups of least total scatter; ties go to the lowest start."""
    n = len(scatter)
    best = list(scatter[0])  # best[j]: least scatter of points 0..j in the groups opened so far
    choices: list[list[int]] = []
    for group in range(1, k):
        cost = [math.inf] * n
        choice = [0] * n
        for last in range(group, n):
            for start in range(group, last + 1):
                candidate = best[start - 1] + scatter[start][last - start]
                if candidate < cost[last]:
                    cost[last], choice[last] = candidate, start
        best = cost
        choices.append(choice)
    starts, last = [], n - 1
    for choice in reversed(choices):
        starts.append(choice[last])
        last = choice[last] - 1
    return [0, *reversed(starts)]

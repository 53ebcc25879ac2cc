"""What many plans say of each layer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError, PlanError
from ..plan.plan import BudgetPlan


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (of the sample: n - 1; 0 for one value), least and greatest."""

    mean: float
    sd: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value; none is a :class:`ConfigError`."""
    if not values:
        raise ConfigError("a spread needs at least one value")
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    low, high = min(values), max(values)
    # Rounding must not put the mean of equal values beside them.
    return Spread(min(high, max(low, statistics.fmean(values))), sd, low, high)


def by_layer(rows: Sequence[Sequence[float]]) -> tuple[Spread, ...]:
    """The spread of each layer; ``rows`` has one value per layer for each prompt."""
    return tuple(spread(layer) for layer in _layers(rows))


def budgets_alike(plans: Sequence[BudgetPlan]) -> list[list[int]]:
    """Each plan's budgets: of every KV head if any of the plans tells heads apart, else of every layer.

    Raises :class:`ConfigError` for plans of different layers or heads.
    """
    with_heads = next((plan.head_budgets for plan in plans if plan.head_budgets is not None), None)
    if with_heads is None:
        return [list(plan.budgets) for plan in plans]
    counts = [len(layer) for layer in with_heads]
    if any(plan.n_layers != len(counts) for plan in plans):
        raise ConfigError("plans of one model are needed, all of the same number of layers")
    try:
        return [[tokens for i, count in enumerate(counts) for tokens in plan.heads(i, count)] for plan in plans]
    except PlanError as error:
        raise ConfigError(f"plans of one model are needed, but {error}") from error


def group_counts(rows: Sequence[Sequence[int]], groups: int = 1) -> tuple[tuple[int, ...], ...]:
    """For each layer how many prompts put it into G1, G2, ...

    ``rows`` has one group per layer for each prompt, 1 = the most important. There are as many counts as groups in
    any prompt, and at least ``groups``.
    """
    columns = _layers(rows)
    most = max(groups, *map(max, rows))
    return tuple(tuple(layer.count(group) for group in range(1, most + 1)) for layer in columns)


def usual_groups(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The group in which most prompts have each layer; of several, the least important one."""
    return tuple(
        max(range(1, len(counts) + 1), key=lambda group: (counts[group - 1], group)) for counts in group_counts(rows)
    )


def _layers(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    if not rows or not rows[0] or len(set(map(len, rows))) != 1:
        raise ConfigError("plans of one model are needed, at least one, all of the same number of layers")
    return list(zip(*rows, strict=True))

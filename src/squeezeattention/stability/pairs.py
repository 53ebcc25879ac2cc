"""Agreement of pairs of plans, averaged."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..plan.plan import BudgetPlan
from .layers import budgets_alike
from .measures import adjusted_rand, moved, same_layers, spearman


@dataclass(frozen=True)
class Agreement:
    """Means over pairs of prompts."""

    pairs: int
    same_layers: float | None  # share of the layers that both put into the same group; None without groups
    adjusted_rand: float | None  # of their groupings; None without groups
    spearman: float | None  # of their signals; None without a signal, or where it has no order
    moved: (
        float | None
    )  # share of the tokens that lie in other layers, or KV heads where budgets differ; None without pairs


class Compared(NamedTuple):
    """One pair; the fields are those of :class:`Agreement`."""

    grouped: bool
    same_layers: float
    adjusted_rand: float
    spearman: float | None
    moved: float


def compare(a: BudgetPlan, b: BudgetPlan) -> Compared:
    """Agreement of two plans of one model; plans of different layers are a :class:`ConfigError`."""
    one, other = a.signal_values, b.signal_values
    return Compared(
        grouped=has_groups(a) or has_groups(b),
        same_layers=same_layers(a.groups, b.groups),
        adjusted_rand=adjusted_rand(a.groups, b.groups),
        spearman=None if one is None or other is None else spearman(one, other),
        moved=moved(*budgets_alike([a, b])),
    )


def mean_of(pairs: Iterable[Compared]) -> Agreement:
    """Mean agreement of pairs; all ``None`` if there are none."""
    found = list(pairs)
    grouped = found if any(pair.grouped for pair in found) else []
    return Agreement(
        pairs=len(found),
        same_layers=_mean(pair.same_layers for pair in grouped),
        adjusted_rand=_mean(pair.adjusted_rand for pair in grouped),
        spearman=_mean(pair.spearman for pair in found if pair.spearman is not None),
        moved=_mean(pair.moved for pair in found),
    )


def agreement(pairs: Iterable[tuple[BudgetPlan, BudgetPlan]]) -> Agreement:
    """Mean agreement of pairs of plans, all of one model and one allocator."""
    return mean_of(compare(a, b) for a, b in pairs)


def has_groups(plan: BudgetPlan) -> bool:
    """Whether a plan tells groups of layers apart."""
    return max(plan.groups) > 1


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None

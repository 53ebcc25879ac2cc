"""Agreement of pairs of plans, averaged."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from ..plan.plan import BudgetPlan
from .measures import adjusted_rand, moved, same_layers, spearman


@dataclass(frozen=True)
class Agreement:
    """Means over pairs of prompts."""

    pairs: int
    same_layers: float | None  # share of the layers that both put into the same group; None without groups
    adjusted_rand: float | None  # of their groupings; None without groups
    spearman: float | None  # of their signals; None without a signal, or where it has no order
    moved: float | None  # share of the tokens that lie in other layers; None without pairs


def agreement(pairs: Iterable[tuple[BudgetPlan, BudgetPlan]]) -> Agreement:
    """Mean agreement; all ``None`` if there are no pairs. All plans must be of one model and one allocator."""
    found = list(pairs)
    grouped = any(has_groups(plan) for pair in found for plan in pair)
    ranks = [
        spearman(a.importance, b.importance) for a, b in found if a.importance is not None and b.importance is not None
    ]
    return Agreement(
        pairs=len(found),
        same_layers=_mean(same_layers(a.groups, b.groups) for a, b in found) if grouped else None,
        adjusted_rand=_mean(adjusted_rand(a.groups, b.groups) for a, b in found) if grouped else None,
        spearman=_mean(rank for rank in ranks if rank is not None),
        moved=_mean(moved(a.budgets, b.budgets) for a, b in found),
    )


def has_groups(plan: BudgetPlan) -> bool:
    """Whether a plan tells groups of layers apart."""
    return max(plan.groups) > 1


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None

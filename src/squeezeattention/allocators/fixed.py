"""Budgets that were decided before: by hand, or by an earlier plan."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import ClassVar

from ..errors import ConfigError
from ..plan.plan import BudgetPlan
from .base import Allocation, Allocator


class Fixed(Allocator):
    """Explicit budgets in tokens, one per layer: a :class:`BudgetPlan` or a list of ints.

    They are used as they are, for every prompt, and nothing needs to be observed. A list that is empty or
    holds anything but ints >= 1 is a :class:`ConfigError`; another number of layers is a :class:`PlanError`.
    """

    name: ClassVar[str] = "fixed"
    needs_signal: ClassVar[bool] = False

    def __init__(self, budgets: BudgetPlan | Sequence[int]) -> None:
        if isinstance(budgets, BudgetPlan):
            self.plan = budgets.check()
        else:
            self.plan = BudgetPlan.from_budgets(_whole_numbers(budgets))
        self.p = self.plan.p

    def __repr__(self) -> str:
        return f"Fixed({list(self.plan.budgets)})"

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        self.plan.check_model(None, n_layers)
        return Allocation(shares=self.plan.shares, groups=self.plan.groups, plan=self.plan)


def _whole_numbers(budgets: Sequence[int]) -> list[int]:
    values = []
    for layer, budget in enumerate(budgets):
        try:
            value = 0 if isinstance(budget, bool) else operator.index(budget)
        except TypeError:
            value = 0
        if value < 1:
            raise ConfigError(f"fixed budgets must be whole numbers >= 1; layer {layer} has {budget!r}")
        values.append(value)
    if not values:
        raise ConfigError("fixed budgets need one number per layer, got none")
    return values

"""The shares of a plan that was made before, at any budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..plan.plan import BudgetPlan
from .base import Allocation, Allocator


class Scaled(Allocator):
    """What a saved plan gave each layer, relative to its average layer; the budget is the prompt's own.

    :class:`Fixed` takes a plan's tokens as they are. Raises :class:`PlanError` for another number of layers.
    """

    name: ClassVar[str] = "scaled"
    needs_signal: ClassVar[bool] = False

    def __init__(self, plan: BudgetPlan) -> None:
        self.plan = plan.check()
        self.p = self.plan.p

    def __repr__(self) -> str:
        return f"Scaled({list(self.plan.budgets)})"

    def allocate(self, importance: Sequence[float] | None, n_layers: int) -> Allocation:
        self.plan.check_model(None, n_layers)
        mean = self.plan.total / n_layers
        return Allocation(tuple(budget / mean for budget in self.plan.budgets), self.plan.groups)

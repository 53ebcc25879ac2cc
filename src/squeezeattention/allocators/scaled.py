"""The shares of a plan that was made before, at any budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ..plan.plan import BudgetPlan
from .base import Allocation, Allocator
from .fixed import Fixed


class Scaled(Allocator):
    """What a saved plan gave each layer, relative to its average layer; the budget is the prompt's own.

    :class:`Fixed` takes a plan's tokens as they are. Raises :class:`PlanError` for another number of layers.
    """

    name: ClassVar[str] = "scaled"
    needs_signal: ClassVar[bool] = False

    def __init__(self, plan: BudgetPlan) -> None:
        self._fixed = Fixed(plan)
        self.p = self._fixed.p

    def __repr__(self) -> str:
        return f"Scaled({list(self._fixed.plan.budgets)})"

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        return replace(self._fixed.allocate(signal_values, n_layers), plan=None)

"""Budgets that were decided before: by hand, or by an earlier plan."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import ClassVar

from ..errors import ConfigError
from ..plan.plan import BudgetPlan
from .base import Allocation, Allocator


class Fixed(Allocator):
    """Explicit budgets in tokens, one per layer or one list per layer with one per KV head; or a :class:`BudgetPlan`.

    They are used as they are, for every prompt, and nothing needs to be observed. A list that is empty or
    holds anything but ints >= 1 is a :class:`ConfigError`; another number of layers or heads is a :class:`PlanError`.
    """

    name: ClassVar[str] = "fixed"
    needs_signal: ClassVar[bool] = False

    def __init__(self, budgets: BudgetPlan | Sequence[int | Sequence[int]]) -> None:
        if isinstance(budgets, BudgetPlan):
            self.plan = budgets.check()
        else:
            self.plan = BudgetPlan.from_budgets(_whole_numbers(budgets))
        self.p = self.plan.p

    def __repr__(self) -> str:
        heads = self.plan.head_budgets
        return f"Fixed({list(self.plan.budgets) if heads is None else [list(layer) for layer in heads]})"

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        self.plan.check_model(None, n_layers)
        return Allocation(shares=self.plan.shares, groups=self.plan.groups, plan=self.plan)


def _whole_numbers(budgets: Sequence[int | Sequence[int]]) -> list[int | list[int]]:
    if not budgets:
        raise ConfigError("fixed budgets need one number per layer, got none")
    found: list[int | list[int]] = []
    for layer, budget in enumerate(budgets):
        if isinstance(budget, list | tuple):
            if not budget:
                raise ConfigError(f"fixed budgets of KV heads need one number per head; layer {layer} has none")
            found.append([_whole_number(head, f"layer {layer}, head {i}") for i, head in enumerate(budget)])
        else:
            found.append(_whole_number(budget, f"layer {layer}"))
    if len({isinstance(budget, int) for budget in found}) > 1:
        raise ConfigError("fixed budgets are one number per layer, or a list of one per KV head for every layer")
    return found


def _whole_number(budget: object, where: str) -> int:
    try:
        value = 0 if isinstance(budget, bool) else operator.index(budget)  # type: ignore[arg-type]
    except TypeError:
        value = 0
    if value < 1:
        raise ConfigError(f"fixed budgets must be whole numbers >= 1; {where} has {budget!r}")
    return value

"""One plan for all prompts, made from the plans of some."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..allocators.base import Allocation, Allocator
from ..errors import ConfigError
from ..plan import BudgetPlan, build_plan
from .layers import budgets_alike, usual_groups

#: What is averaged: what the signal measured (then the allocator divides), or how the plans divided.
WAYS = ("signal", "shares")


def freeze(plans: Sequence[BudgetPlan], allocator: Allocator, *, floor: int = 1, by: str | None = None) -> BudgetPlan:
    """A plan to serve with; every prompt counts once.

    ``by="signal"``: ``allocator`` is given the mean of the signal, as if it came from one prompt. ``by="shares"``:
    each layer (each KV head, where plans tell them apart) gets the mean of its shares of the cache, which softens the
    groups where prompts disagree; the groups on record are then the usual ones. ``None`` is the signal, but the shares
    for plans with budgets by KV head, which have the signal by layer only.

    ``floor``: least tokens of a layer, what the policy needs. The base budget is the mean of the plans', a layer's cap
    the largest of its caps. Raises :class:`ConfigError` for plans of different layers, without what is averaged, or
    none, for an unknown way, and for the signal of plans with budgets by KV head.
    """
    by_head = any(plan.head_budgets is not None for plan in plans)
    if by is None:
        by = "shares" if by_head else "signal"
    if by not in WAYS:
        raise ConfigError(f'a plan is frozen by "signal" or by "shares", not by {by!r}')
    if not plans or len({plan.n_layers for plan in plans}) != 1:
        raise ConfigError("a frozen plan needs plans of one model, at least one, all of the same number of layers")
    if by == "signal" and by_head:
        raise ConfigError(
            "these plans have budgets for KV heads, but the signal of whole layers only: freeze them by shares"
        )
    rows = [plan.signal_values for plan in plans if plan.signal_values is not None]
    if rows and len(rows) < len(plans):
        raise ConfigError("a frozen plan needs the signal of all plans, or of none")
    lengths = [plan.prompt_tokens for plan in plans if plan.prompt_tokens is not None]
    limits = [[cap for cap in layer if cap is not None] for layer in zip(*(plan.caps for plan in plans), strict=True)]
    return build_plan(
        allocator if by == "signal" else _MeanShares(allocator.name, plans),
        signal_values=[statistics.fmean(layer) for layer in zip(*rows, strict=True)] if rows else None,
        base_budget=round(statistics.fmean(plan.base_budget for plan in plans)),
        caps=[max(layer) if len(layer) == len(plans) else None for layer in limits],
        floor=floor,
        signal=plans[0].signal,
        policy=plans[0].policy,
        prompt_tokens=round(statistics.fmean(lengths)) if lengths else None,
        model=plans[0].model,
    )


class _MeanShares(Allocator):
    """The mean of what the plans of some prompts gave each layer, or each KV head."""

    needs_signal = False

    def __init__(self, name: str, plans: Sequence[BudgetPlan]) -> None:
        self.name = f"{name}, mean shares"  # type: ignore[misc]  # on record in the plan
        self._plans = plans

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        shares = [plan.shares for plan in self._plans]
        return Allocation(
            shares=tuple(statistics.fmean(layer) for layer in zip(*shares, strict=True)),
            groups=usual_groups([plan.groups for plan in self._plans]),
            heads=self._heads(),
        )

    def _heads(self) -> tuple[tuple[float, ...], ...] | None:
        """The mean share of each KV head, where plans tell them apart."""
        counts = next((tuple(map(len, plan.head_budgets)) for plan in self._plans if plan.head_budgets), None)
        if counts is None:
            return None
        budgets = budgets_alike(self._plans)
        rows = [[tokens / plan.total for tokens in own] for plan, own in zip(self._plans, budgets, strict=True)]
        means = iter([statistics.fmean(head) for head in zip(*rows, strict=True)])
        return tuple(tuple(next(means) for _ in range(count)) for count in counts)

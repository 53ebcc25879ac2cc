"""From an allocator and a prompt's measurements to a checked plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import BudgetError, ConfigError
from .fit import fit_budgets, fit_heads
from .plan import BudgetPlan

if TYPE_CHECKING:
    from ..allocators.base import Allocator


def build_plan(
    allocator: Allocator,
    *,
    signal_values: Sequence[float] | Sequence[Sequence[float]] | None,
    base_budget: int,
    caps: Sequence[int | None],
    floor: int = 1,
    signal: str | None = None,
    policy: str | None = None,
    prompt_tokens: int | None = None,
    model: str | None = None,
) -> BudgetPlan:
    """Divide ``base_budget`` tokens per layer among ``len(caps)`` layers as ``allocator`` sees fit.

    An allocator that carries finished budgets (:class:`~squeezeattention.allocators.Fixed`) has them taken
    as they are: ``base_budget`` and ``caps`` do not change them. A signal's values by layer and KV head go to an
    allocator that divides among heads; others are given, and the plan shows, each layer's mean.

    Raises :class:`BudgetError` when the floors cannot be paid, :class:`PlanError` for a finished plan of another model.
    """
    from ..allocators.base import Allocation

    by_head = None if signal_values is None else _by_head(signal_values)
    values = None if by_head is None else tuple(math.fsum(layer) / len(layer) for layer in by_head)
    if allocator.per_head and by_head is not None:
        allocation = allocator.allocate_heads(by_head, len(caps))
    else:
        allocation = allocator.allocate(values, len(caps))
    if not isinstance(allocation, Allocation):
        raise ConfigError(f"{type(allocator).__name__}.allocate must return an Allocation, got {allocation!r}")
    if allocation.plan is not None:
        allocation.plan.check_model(model, len(caps))
        return _verbatim(allocation.plan, caps, floor, policy, prompt_tokens, model)
    floor = max(floor, min(allocation.floor, int(base_budget * allocation.floor_share)))
    heads: tuple[tuple[int, ...], ...] | None = None
    if allocation.heads is None:
        budgets = fit_budgets(allocation.shares, base_budget, caps, floor)
    else:
        budgets, by_layer = fit_heads(allocation.heads, base_budget, caps, floor)
        ragged = any(len(set(layer)) > 1 for layer in by_layer)
        heads = tuple(map(tuple, by_layer)) if ragged else None
    return BudgetPlan(
        budgets=tuple(budgets),
        head_budgets=heads,
        groups=allocation.groups,
        base_budget=base_budget,
        caps=tuple(caps),
        allocator=allocator.name,
        signal_values=values,
        floor=floor,
        signal=signal,
        policy=policy,
        p=allocator.p,
        prompt_tokens=prompt_tokens,
        model=model,
        warnings=allocation.warnings,
    ).check()


def _by_head(signal_values: Sequence[float] | Sequence[Sequence[float]]) -> list[list[float]]:
    """A signal's values by layer and KV head; one that knows layers only has a head for each."""
    return [
        [float(value) for value in layer] if isinstance(layer, Sequence) else [float(layer)] for layer in signal_values
    ]


def _verbatim(
    plan: BudgetPlan,
    caps: Sequence[int | None],
    floor: int,
    policy: str | None,
    prompt_tokens: int | None,
    model: str | None,
) -> BudgetPlan:
    """The given budgets under this prompt's facts; its groups, signal and p stay on record."""
    for layer, (budget, cap) in enumerate(zip(plan.budgets, caps, strict=True)):
        least = floor if cap is None else min(floor, cap)
        lowest = budget if plan.head_budgets is None else min(plan.head_budgets[layer])
        if lowest < least:
            where = f"layer {layer}" if plan.head_budgets is None else f"a KV head of layer {layer}"
            raise BudgetError(f"{where} has a fixed budget of {lowest} tokens, but needs at least {least}; raise it")
    warnings = plan.warnings
    if None not in (plan.policy, policy) and plan.policy != policy:
        warnings += (f"the fixed budgets were planned for the policy {plan.policy}, not for {policy}",)
    return replace(
        plan,
        allocator="fixed",
        base_budget=-(-plan.total // plan.n_layers),
        caps=(None,) * plan.n_layers,
        exact_total=plan.total,
        floor=min(floor, *plan.budgets, *(head for layer in plan.head_budgets or () for head in layer)),
        policy=policy,
        prompt_tokens=prompt_tokens,
        model=plan.model if model is None else model,
        warnings=warnings,
    ).check()

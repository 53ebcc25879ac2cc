"""What must hold of every budget plan."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NoReturn

from ..errors import PlanError
from .fit import total_tokens

if TYPE_CHECKING:
    from .plan import BudgetPlan


def check_plan(plan: BudgetPlan) -> None:
    """Raise :class:`PlanError` on the first broken invariant."""
    _check_lengths(plan)
    _check_values(plan)
    _check_bounds(plan)
    _check_heads(plan)
    _check_sum(plan)


def _check_lengths(plan: BudgetPlan) -> None:
    n = len(plan.budgets)
    values = n if plan.signal_values is None else len(plan.signal_values)
    if n < 1:
        _broken("at least one layer", "the plan has no budgets")
    if not n == len(plan.groups) == len(plan.caps) == values:
        _broken(
            "one entry per layer",
            f"{n} budgets, {len(plan.groups)} groups, {len(plan.caps)} caps, {values} signal values",
        )


def _check_values(plan: BudgetPlan) -> None:
    counts: list[tuple[str, object]] = []
    counts += [(f"budget of layer {i}", budget) for i, budget in enumerate(plan.budgets)]
    counts += [(f"group of layer {i}", group) for i, group in enumerate(plan.groups)]
    counts += [(f"cap of layer {i}", cap) for i, cap in enumerate(plan.caps) if cap is not None]
    counts += [("base_budget", plan.base_budget), ("floor", plan.floor)]
    counts += [
        (name, value)
        for name, value in (("prompt_tokens", plan.prompt_tokens), ("exact_total", plan.exact_total))
        if value is not None
    ]
    for name, count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            _broken("whole numbers of at least 1", f"{name} is {count!r}")
    for layer, value in enumerate(plan.signal_values or ()):
        if not _is_number(value) or not math.isfinite(value):
            _broken("finite signal", f"the signal of layer {layer} is {value!r}")
    if plan.p is not None and not (_is_number(plan.p) and 0 < plan.p <= 1):
        _broken("p in (0, 1]", f"p is {plan.p!r}")
    texts = [("allocator", plan.allocator), *(("warning", text) for text in plan.warnings)]
    texts += [
        (name, text)
        for name, text in (("signal", plan.signal), ("policy", plan.policy), ("model", plan.model))
        if text is not None
    ]
    for name, text in texts:
        if not isinstance(text, str):
            _broken("names are text", f"{name} is {text!r}")


def _check_bounds(plan: BudgetPlan) -> None:
    for layer, (budget, cap) in enumerate(zip(plan.budgets, plan.caps, strict=True)):
        low = plan.floor if cap is None else min(plan.floor, cap)
        if budget < low or (cap is not None and budget > cap):
            _broken(
                "min(floor, cap) <= budget <= cap",
                f"layer {layer} has budget {budget}, floor {plan.floor}, cap {cap if cap else 'unlimited'}",
            )


def _check_heads(plan: BudgetPlan) -> None:
    if plan.head_budgets is None:
        return
    if len(plan.head_budgets) != plan.n_layers:
        _broken("one list of head budgets per layer", f"{len(plan.head_budgets)} lists, {plan.n_layers} layers")
    for layer, (heads, budget, cap) in enumerate(zip(plan.head_budgets, plan.budgets, plan.caps, strict=True)):
        low = plan.floor if cap is None else min(plan.floor, cap)
        for head, tokens in enumerate(heads):
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
                _broken("whole numbers of at least 1", f"budget of layer {layer}, head {head} is {tokens!r}")
            if tokens < low or (cap is not None and tokens > cap):
                _broken(
                    "min(floor, cap) <= head budget <= cap",
                    f"layer {layer}, head {head} has {tokens}, floor {plan.floor}, cap {cap if cap else 'unlimited'}",
                )
        if not heads or -(-sum(heads) // len(heads)) != budget:
            _broken(
                "a layer's budget is the mean of its heads, rounded up",
                f"layer {layer} has budget {budget} and heads {', '.join(map(str, heads)) or 'none'}",
            )


def _check_sum(plan: BudgetPlan) -> None:
    if plan.exact_total is None:
        expected = total_tokens(plan.base_budget, plan.caps)
        caps = " + ".join("unlimited" if cap is None else str(cap) for cap in plan.caps)
        rule = f"min(layers * base_budget, sum(caps)) = min({plan.n_layers} * {plan.base_budget}, {caps})"
    else:
        expected, rule = plan.exact_total, "exact_total"
    if plan.total != expected:
        terms = " + ".join(map(str, plan.budgets))
        _broken("the budgets spend the total", f"{terms} = {plan.total}, but {rule} = {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _broken(invariant: str, terms: str) -> NoReturn:
    raise PlanError(f"the budget plan breaks the invariant '{invariant}': {terms}")

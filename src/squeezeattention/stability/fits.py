"""How far the plans of single prompts are from a plan that was made without looking at them, or at them alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..plan import BudgetPlan
from .layers import budgets_alike
from .measures import moved, same_layers
from .pairs import has_groups

#: Makes one plan of several.
Freeze = Callable[[Sequence[BudgetPlan]], BudgetPlan]


@dataclass(frozen=True)
class Fit:
    """Prompts' own plans against another plan for each of them."""

    against: str  # "frozen", "unseen prompt", "unseen task" or "uniform"
    prompts: int
    same_groups: float | None  # share of the prompts that have all layers in the same groups; None without groups
    same_layers: float | None  # mean share of the layers in the same group; None without groups
    moved: float  # mean share of the tokens that lie in other layers, or KV heads where budgets differ
    worst: float  # the greatest of these


def fits_of(plans: Sequence[BudgetPlan], tasks: Sequence[str], freeze: Freeze, frozen: BudgetPlan) -> tuple[Fit, ...]:
    """How ``frozen`` fits the prompts it was made of, and how a plan that is made the same way fits others.

    "unseen prompt": each prompt against a plan of all the others (leave one out), which is the honest figure for
    prompts to come of the same kind. "unseen task", with several tasks: each against a plan of the other tasks.
    "uniform", for scale: each against equal budgets.
    """
    fits = [_fit("frozen", ((plan, frozen) for plan in plans))]
    if len(plans) > 1:
        others = ((plan, freeze([*plans[:i], *plans[i + 1 :]])) for i, plan in enumerate(plans))
        fits.append(_fit("unseen prompt", others))
    if len(set(tasks)) > 1:
        fits.append(_fit("unseen task", _without_own_task(plans, tasks, freeze)))
    fits.append(
        replace(_fit("uniform", ((plan, _uniform(plan)) for plan in plans)), same_groups=None, same_layers=None)
    )
    return tuple(fits)


def _without_own_task(
    plans: Sequence[BudgetPlan], tasks: Sequence[str], freeze: Freeze
) -> Iterable[tuple[BudgetPlan, BudgetPlan]]:
    members: dict[str, list[BudgetPlan]] = defaultdict(list)
    for plan, task in zip(plans, tasks, strict=True):
        members[task].append(plan)
    for task, own in members.items():
        made = freeze([plan for other, found in members.items() if other != task for plan in found])
        yield from ((plan, made) for plan in own)


def _uniform(plan: BudgetPlan) -> BudgetPlan:
    return BudgetPlan.from_budgets([plan.base_budget] * plan.n_layers)


def _fit(against: str, pairs: Iterable[tuple[BudgetPlan, BudgetPlan]]) -> Fit:
    found = list(pairs)
    grouped = any(has_groups(plan) for pair in found for plan in pair)
    distances = [moved(*budgets_alike(pair)) for pair in found]
    return Fit(
        against=against,
        prompts=len(found),
        same_groups=statistics.fmean(own.groups == other.groups for own, other in found) if grouped else None,
        same_layers=statistics.fmean(same_layers(own.groups, other.groups) for own, other in found)
        if grouped
        else None,
        moved=statistics.fmean(distances),
        worst=max(distances),
    )

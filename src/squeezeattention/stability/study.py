"""Everything about the plans of many prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from ..errors import ConfigError
from ..plan import BudgetPlan
from .fits import Fit, Freeze, fits_of
from .layers import Spread, by_layer, group_counts, usual_groups
from .pairs import Agreement, Compared, compare, mean_of


@dataclass(frozen=True)
class Observation:
    """A prompt, the task it belongs to, and its own plan."""

    source: str
    task: str
    plan: BudgetPlan


@dataclass(frozen=True)
class TaskStudy:
    """The prompts of one task, or of all of them. Per layer: one entry for each layer."""

    task: str
    prompts: int
    signal: tuple[Spread, ...] | None  # per layer; None without a signal
    budgets: tuple[Spread, ...]  # per layer, tokens
    shares: tuple[Spread, ...]  # per layer, of the average layer of the prompt's plan: prompts of any length compare
    groups: tuple[tuple[int, ...], ...] | None  # per layer: prompts that put it into G1, G2, ...; None without groups
    usual_groups: tuple[int, ...] | None  # per layer: the group of most prompts
    group_sizes: tuple[float, ...] | None  # mean number of layers of G1, G2, ...
    agreement: Agreement  # of all pairs of its prompts


@dataclass(frozen=True)
class Study:
    """How stable plans are; see :func:`study`."""

    all: TaskStudy
    tasks: tuple[TaskStudy, ...]
    within: Agreement  # of pairs of prompts of one task
    between: Agreement  # of pairs of prompts of two tasks
    fits: tuple[Fit, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def study(observations: Sequence[Observation], freeze: Freeze, frozen: BudgetPlan | None = None) -> Study:
    """Statistics of the plans of some prompts, all with one model, allocator and policy.

    ``freeze`` makes one plan of several (mostly :func:`~squeezeattention.stability.freeze` with its options filled
    in); ``frozen`` is what it makes of all of them, if that is known. Work grows with the square of the number of
    prompts. Raises :class:`ConfigError` for no prompts, and for plans of different layers.
    """
    if not observations:
        raise ConfigError("a study of plans needs at least one prompt")
    plans = [one.plan for one in observations]
    tasks = [one.task for one in observations]
    members = {task: [one.plan for one in observations if one.task == task] for task in dict.fromkeys(tasks)}
    _check(plans)
    most = max(max(plan.groups) for plan in plans)
    pairs = [({a.task, b.task}, compare(a.plan, b.plan)) for a, b in combinations(observations, 2)]

    def task_study(task: str, own: Sequence[BudgetPlan], of: Iterable[Compared]) -> TaskStudy:
        return _task_study(task, own, most, mean_of(of))

    return Study(
        all=task_study("all", plans, (pair for _, pair in pairs)),
        tasks=tuple(
            task_study(task, own, (pair for of, pair in pairs if of == {task})) for task, own in members.items()
        ),
        within=mean_of(pair for of, pair in pairs if len(of) == 1),
        between=mean_of(pair for of, pair in pairs if len(of) == 2),
        fits=fits_of(plans, tasks, freeze, freeze(plans) if frozen is None else frozen),
    )


def _check(plans: Sequence[BudgetPlan]) -> None:
    if len({plan.n_layers for plan in plans}) != 1:
        raise ConfigError("a study of plans needs plans of one model: they differ in the number of layers")
    if len({plan.signal_values is None for plan in plans}) != 1:
        raise ConfigError("a study of plans needs the signal of all prompts, or of none")


def _task_study(task: str, plans: Sequence[BudgetPlan], n_groups: int, agreement: Agreement) -> TaskStudy:
    signals = [plan.signal_values for plan in plans if plan.signal_values is not None]
    groups = [plan.groups for plan in plans]
    counts = group_counts(groups, n_groups)
    grouped = n_groups > 1
    return TaskStudy(
        task=task,
        prompts=len(plans),
        signal=by_layer(signals) if signals else None,
        budgets=by_layer([plan.budgets for plan in plans]),
        shares=by_layer([plan.shares for plan in plans]),
        groups=counts if grouped else None,
        usual_groups=usual_groups(groups) if grouped else None,
        group_sizes=tuple(sum(layers) / len(plans) for layers in zip(*counts, strict=True)) if grouped else None,
        agreement=agreement,
    )

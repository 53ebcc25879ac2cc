"""Tables of a study of plans, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from ..plan import BudgetPlan
from ..stability import Agreement, Fit, Study, TaskStudy

_AGAINST = {
    "frozen": "this frozen plan",
    "unseen prompt": "one made without the prompt",
    "unseen task": "one made without its task",
    "uniform": "uniform budgets",
}
LEGEND = (
    "tokens: budgets of the texts' own plans, all brought to the size of the frozen plan. same group: layers that both "
    "put into the same group. Rand: adjusted Rand index of the groups, 1 = the same, 0 = by chance. rank: Spearman "
    "correlation of the signal. elsewhere: tokens of the cache that lie in other layers (or in other KV heads, where "
    "these have budgets of their own)."
)
STUDY_LEGEND = (
    "groups: layers that two prompts put into the same group, of one task (within) and of two (between). moved: tokens "
    "of the cache that lie in other layers. unseen: moved, against the mean shares of all other prompts or tasks. "
    "uniform: moved, against equal budgets."
)


def layer_table(study: Study, frozen: BudgetPlan) -> Table:
    """A row a layer: its signal, how many prompts put it into each group, its budgets at the frozen plan's size."""
    seen, average = study.all, frozen.total / frozen.n_layers
    table = _table(["layer"])
    for title in (
        *(("signal", "sd", "range") if seen.signal else ()),
        *_group_titles(seen),
        "tokens",
        "range",
        "frozen",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for layer, (share, own) in enumerate(zip(seen.shares, frozen.budgets, strict=True)):
        cells = [str(layer)]
        if seen.signal is not None:
            signal = seen.signal[layer]
            cells += [_number(signal.mean), _number(signal.sd), f"{_number(signal.low)}-{_number(signal.high)}"]
        if seen.groups is not None:
            cells += [str(count or "") for count in seen.groups[layer]]
        mean, low, high = (f"{average * value:.0f}" for value in (share.mean, share.low, share.high))
        table.add_row(*cells, mean, f"{low}-{high}", str(own))
    return table


def group_table(tasks: Sequence[TaskStudy]) -> Table:
    """A row a task: how many layers each group has (mean), and which ones usually."""
    table = _table(["task"])
    table.add_column("prompts", justify="right")
    for title in _group_titles(tasks[0]):
        table.add_column(title, overflow="fold")
    for task in tasks:
        table.add_row(task.task, str(task.prompts), *_group_cells(task))
    return table


def agreement_table(study: Study) -> Table:
    """A row for pairs of prompts of one task, of each task, and of two tasks."""
    table = _table(["pairs of prompts"])
    for title in ("pairs", "same group", "Rand", "rank", "elsewhere"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, found in _agreements(study):
        table.add_row(name, *_agreement_cells(found))
    return table


def fit_table(fits: Sequence[Fit]) -> Table:
    """A row for each plan that the prompts' own plans are held against."""
    table = _table(["prompts' own plans against"])
    for title in ("all groups same", "same group", "elsewhere", "at worst"):
        table.add_column(title, justify="right", no_wrap=True)
    for fit in fits:
        table.add_row(
            _AGAINST[fit.against], _percent(fit.same_groups), _percent(fit.same_layers), _percent(fit.moved),
            _percent(fit.worst),
        )  # fmt: skip
    return table


def study_table(studies: Sequence[tuple[str, Study]]) -> Table:
    """A row for each study: agreement within and between tasks, and how a frozen plan fits what it has not seen."""
    table = _table(["plans of"])
    for title in (
        "groups\nwithin", "groups\nbetween", "moved\nwithin", "moved\nbetween", "unseen\nprompt", "unseen\ntask",
        "uniform",
    ):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    for name, found in studies:
        fits = {fit.against: fit.moved for fit in found.fits}
        shares = [found.within.same_layers, found.between.same_layers, found.within.moved, found.between.moved]
        shares += [fits.get(against) for against in ("unseen prompt", "unseen task", "uniform")]
        table.add_row(name, *map(_percent, shares))
    return table


def ranges(layers: Sequence[int]) -> str:
    """``0, 3-5`` for 0, 3, 4, 5; a dash for none."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "-"


def _table(first: Sequence[str]) -> Table:
    table = Table(header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
    for title in first:
        table.add_column(title, overflow="fold")
    return table


def _group_titles(task: TaskStudy) -> list[str]:
    return [] if task.group_sizes is None else [f"G{group}" for group in range(1, len(task.group_sizes) + 1)]


def _group_cells(task: TaskStudy) -> Iterator[str]:
    for group, size in enumerate(task.group_sizes or (), 1):
        members = [layer for layer, own in enumerate(task.usual_groups or ()) if own == group]
        yield f"{size:.1f} ({ranges(members)})"


def _agreements(study: Study) -> Iterator[tuple[str, Agreement]]:
    if len(study.tasks) > 1:
        yield "of one task", study.within
        yield from ((f"  {task.task}", task.agreement) for task in study.tasks if task.agreement.pairs)
        yield "of two tasks", study.between
    else:
        yield "all", study.all.agreement


def _agreement_cells(found: Agreement) -> list[str]:
    numbers = ["-" if value is None else f"{value:.2f}" for value in (found.adjusted_rand, found.spearman)]
    return [str(found.pairs), _percent(found.same_layers), *numbers, _percent(found.moved)]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"

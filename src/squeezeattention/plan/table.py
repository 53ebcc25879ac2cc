"""Budget plans for people to read."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

    from .plan import BudgetPlan

_BAR = 24
_WIDTH = 100
_FEW_HEADS = 8


def plan_text(plan: BudgetPlan) -> str:
    """A fixed-width table in plain ASCII: header, one row per layer, group sizes, warnings."""
    largest = max(plan.budgets, default=0)
    width = max(len("budget"), len(str(largest)))
    signal = _signal_title(plan)
    wide = max(len(signal), len("0.0000"))
    heads, grouped = _heads(plan), len(plan.group_sizes) > 1
    head = f"{'layer':>5}  {signal:>{wide}}{'  group' if grouped else ''}  {'budget':>{width}}"
    lines = [_title(plan), head if heads is None else f"{head}  {'':{_BAR}}  KV heads"]
    for layer, (value, group, budget) in enumerate(_rows(plan)):
        bar = "#" * max(1, round(_BAR * budget / largest))
        line = f"{layer:>5}  {value:>{wide}}{f'  {group:>5}' if grouped else ''}  {budget:>{width}}  {bar}"
        lines.append(line if heads is None else f"{line:{len(head) + 2 + _BAR}}  {heads[layer]}")
    lines += [_group_sizes(plan)] if grouped else []
    for warning in plan.warnings:
        lines += textwrap.wrap(f"warning: {warning}", _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def plan_rich(plan: BudgetPlan) -> Group:
    """The same as a :class:`rich.console.Group`; needs ``rich``."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table()
    grouped = len(plan.group_sizes) > 1
    for column in ("layer", _signal_title(plan), *(["group"] if grouped else []), "budget"):
        table.add_column(column, justify="right")
    table.add_column("")
    heads = _heads(plan)
    if heads is not None:
        table.add_column("KV heads")
    largest = max(plan.budgets, default=0)
    for layer, (value, group, budget) in enumerate(_rows(plan)):
        bar = ProgressBar(total=largest, completed=budget, width=_BAR)
        cells = [str(layer), value, *([group] if grouped else []), str(budget)]
        table.add_row(*cells, bar, *([] if heads is None else [heads[layer]]))
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    sizes = [Text(_group_sizes(plan))] if grouped else []
    return Group(Text(_title(plan), style="bold"), table, *sizes, *warnings)


def _rows(plan: BudgetPlan) -> list[tuple[str, str, int]]:
    """Signal, group and budget of every layer."""
    values = plan.signal_values
    signal = ["-"] * plan.n_layers if values is None else [f"{x:.4f}" for x in values]
    return [(x, f"G{g}", b) for x, g, b in zip(signal, plan.groups, plan.budgets, strict=True)]


def _heads(plan: BudgetPlan) -> list[str] | None:
    """Each layer's budgets by head: all of few, the span of many; ``None`` where heads are equal."""
    if plan.head_budgets is None:
        return None
    if max(map(len, plan.head_budgets)) > _FEW_HEADS:
        return [f"{min(heads)} to {max(heads)}" for heads in plan.head_budgets]
    width = max(len(str(budget)) for heads in plan.head_budgets for budget in heads)
    return [" ".join(f"{budget:>{width}}" for budget in heads) for heads in plan.head_budgets]


def _signal_title(plan: BudgetPlan) -> str:
    """What the column holds, and which way it points."""
    return "signal" if plan.signal_values is None else signal_label(plan.signal)


def signal_label(name: str | None) -> str:
    """What the values of a signal are, and which way they point: ``1 - span (low: matters more)``."""
    from ..signals import SIGNALS  # only here: signals need torch, and `squeeze --help` must not wait for it

    label = getattr(SIGNALS.factory(name), "label", "") if name is not None and name in SIGNALS else ""
    return f"{label or name or 'signal'} (low: matters more)"


def _title(plan: BudgetPlan) -> str:
    names = [f"{plan.allocator} plan"]
    names += [f"{word} {name}" for word, name in (("policy", plan.policy), ("signal", plan.signal)) if name]
    if plan.p is not None:
        names.append(f"p {plan.p:g}")
    names.append(f"base budget {plan.base_budget}")
    if plan.prompt_tokens is not None:
        names.append(f"prompt {plan.prompt_tokens}")
    return " | ".join([*names, f"total {plan.total} tokens in {plan.n_layers} layers"])


def _group_sizes(plan: BudgetPlan) -> str:
    sizes = plan.group_sizes.items()
    return "groups: " + ", ".join(f"G{g} {n} layer{'s' if n != 1 else ''}" for g, n in sizes)

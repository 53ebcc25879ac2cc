"""``squeeze plan``: what the layers of a model do on given texts, and the budgets that follow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..allocators import name_or_plan
from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError
from ..extras import require
from ..plan import BudgetPlan
from ..plan.table import signal_label
from ..plots import plan_figure, save, stability_figure
from ..stability import WAYS, Observation, Study, study
from . import options
from .console import ERR, OUT, print_json
from .inputs import check_target, load_model
from .observing import Recipe
from .stability import LEGEND, agreement_table, fit_table, group_table, layer_table, ranges
from .texts import Texts

#: Texts up to which each has a row of its own on the terminal.
_FEW = 12


def plan(
    model_name: options.Model,
    more_files: options.MoreFiles = None,
    files: options.Files = None,
    prompt: options.PromptText = None,
    jsonl: options.JsonLines = None,
    tasks: options.Tasks = None,
    lengths: options.Lengths = None,
    samples: options.Samples = None,
    seeds: options.Seeds = None,
    budget: options.BudgetText = None,
    policy: options.Policy = DEFAULT_POLICY,
    allocator: options.AllocatorName = None,
    signal: options.SignalName = None,
    p: options.P = None,
    outliers: options.Outliers = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--freeze",
            metavar="signal|shares",
            help="What the plan of several texts is the mean of: the signal, or for budgets by KV head the shares.",
        ),
    ] = None,
    output: options.Output = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw signal, groups and budgets as a PNG.")
    ] = None,
    truncate: options.Truncate = False,
    chunk_size: options.ChunkSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """Measure how much each layer matters on texts, and plan its budget.

    Texts are files, -p TEXT, samples of tasks, or stdin.

    Of several texts, the plan that is shown last and saved is one frozen plan,
    made from the mean of what they showed. The tables before it say how much
    the texts agree, and how far their own plans are from it.
    """
    for target in (output, plot):
        check_target(target)
    if plot is not None:
        require("matplotlib", "plot")  # before the work, not after
    if by is not None and by not in WAYS:
        raise ConfigError(f"--freeze must be one of {', '.join(WAYS)}, got {by!r}")
    spec = name_or_plan(allocator)
    if isinstance(spec, BudgetPlan):
        raise ConfigError("a finished plan measures nothing: give --allocator a name, see `squeeze allocators`")
    kept = options.policy_of(policy)
    options.check(budget, kept, spec, p, outliers, signal)
    asked = Texts.of(model_name, files, more_files, prompt, jsonl, tasks, lengths, samples, seeds)
    model, tokenizer = load_model(model_name, dtype, device)
    texts = asked.tokenized(model, tokenizer, truncate=truncate)
    recipe = Recipe(budget, kept, spec, p, signal, outliers)
    seen = recipe.observe(model, texts, chunk_size)
    # Decided once for all texts: a study also freezes parts of them.
    by = by or ("shares" if any(one.plan.head_budgets is not None for one in seen) else "signal")
    frozen = recipe.freeze([one.plan for one in seen], by)
    found = study(seen, partial(recipe.freeze, by=by), frozen) if len(seen) > 1 else None
    origin = f"the mean {by} of {len(seen)} texts" if found is not None else "the only text"
    if output is not None:
        frozen.save(output)
    if plot is not None:
        named = [(one.source, one.plan) for one in seen]
        save(plan_figure(named) if found is None else stability_figure(seen, frozen), plot)
    if as_json:
        print_json({
            "model": model_name,
            "prompts": [
                {"source": text.source, "task": text.task, "tokens": len(text.tokens), "plan": one.plan.to_dict()}
                for text, one in zip(texts, seen, strict=True)
            ],
            "plan": frozen.to_dict(),
            "plan_from": origin,
            "stability": None if found is None else found.to_dict(),
            "output": None if output is None else str(output),
            "plot": None if plot is None else str(plot),
        })  # fmt: skip
        return
    if found is not None:
        _show(seen, found, frozen)
        OUT.print(f"\nPlan from {origin}, at their mean base budget of {frozen.base_budget} tokens:")
    OUT.print(frozen)
    for what, path in ((f"plan from {origin}", output), ("figure", plot)):
        if path is not None:
            ERR.print(f"{what} saved: {path}", soft_wrap=True)


def _signal_of(plan: BudgetPlan) -> str:
    return "" if plan.signal_values is None else f"signal {signal_label(plan.signal)}, "


def _show(seen: Sequence[Observation], found: Study, frozen: BudgetPlan) -> None:
    """What several texts showed, as tables."""
    if len(seen) <= _FEW:
        OUT.print(_text_table(seen))
    OUT.print(f"\nLayers: {_signal_of(frozen)}groups and budgets over {len(seen)} texts", style="bold")
    OUT.print(layer_table(found, frozen))
    if found.all.groups is not None and (len(found.tasks) > 1 or len(seen) > _FEW):
        OUT.print("Groups by task: mean number of layers, and which they usually are", style="bold")
        OUT.print(group_table(found.tasks))
    OUT.print("Stability", style="bold")
    OUT.print(agreement_table(found))
    OUT.print(fit_table(found.fits))
    OUT.print(LEGEND, style="dim")


def _text_table(seen: Sequence[Observation]) -> Table:
    """Each text's groups: which layers, and how many tokens they keep."""
    groups = sorted({group for one in seen for group in one.plan.groups})
    table = Table(header_style="bold")
    table.add_column("text", overflow="fold")
    table.add_column("tokens", justify="right")
    for group in groups:
        table.add_column(f"G{group}: layers", overflow="fold")
        table.add_column("keep", justify="right")
    for one in seen:
        cells = [one.source, str(one.plan.prompt_tokens)]
        for group in groups:
            members = [layer for layer, own in enumerate(one.plan.groups) if own == group]
            cells += [ranges(members), _span([one.plan.budgets[layer] for layer in members])]
        table.add_row(*cells)
    return table


def _span(budgets: list[int]) -> str:
    if not budgets:
        return "-"
    low, high = min(budgets), max(budgets)
    return str(low) if low == high else f"{low}-{high}"

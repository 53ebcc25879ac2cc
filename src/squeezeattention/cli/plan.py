"""``squeeze plan``: what the layers of a model do on given texts, and the budgets that follow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .. import BudgetPlan, SqueezeCache
from ..allocators import name_or_plan, resolve_allocator
from ..errors import ConfigError, InputError
from ..plan import build_plan
from ..plots import plan_figure, save
from ..policies import resolve_policy
from ..tasks.driving import read
from . import options
from .console import ERR, OUT, print_json
from .inputs import check_target, load_model, read_prompts, tokenize


def plan(
    model_name: options.Model,
    more_files: Annotated[list[Path] | None, typer.Argument(metavar="[FILES]...", help="Texts, like -f.")] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="FILES...", help="A text to read (- is stdin); any number."),
    ] = None,
    prompt: options.PromptText = None,
    budget: options.BudgetText = "0.2",
    policy: options.Policy = "h2o",
    allocator: options.AllocatorName = "squeeze",
    signal: options.SignalName = None,
    p: options.P = None,
    outliers: options.Outliers = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw signal, groups and budgets as a PNG.")
    ] = None,
    chunk_size: options.ChunkSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure how much each layer matters on texts, and plan its budget. Texts are files, -p TEXT, or stdin.

    Of several texts, the plan that is shown last and saved is made from the mean of what they showed.
    """
    for target in (output, plot):
        check_target(target)
    prompts = read_prompts([*(files or ()), *(more_files or ())], prompt)
    spec = name_or_plan(allocator)
    if isinstance(spec, BudgetPlan):
        raise ConfigError("a finished plan measures nothing: give --allocator a name, see `squeeze allocators`")
    options.check(budget, policy, spec, p, outliers, signal)
    model, tokenizer = load_model(model_name, dtype, device)
    texts = [tokenize(model, tokenizer, given) for given in prompts]
    plans: list[BudgetPlan] = []
    with ERR.status("reading") as status:
        for number, (given, tokens) in enumerate(zip(prompts, texts, strict=True), 1):
            status.update(f"reading {given.source} ({number} of {len(prompts)}, {len(tokens)} tokens)")
            cache = SqueezeCache(model, budget, policy, spec, p, signal=signal, outliers=outliers)
            read(model, cache, tokens, chunk=chunk_size)
            made = cache.plan
            if made is None:
                raise InputError(f"{given.source} gave no plan: nothing was read")
            plans.append(made)
    sources = [given.source for given in prompts]
    final = plans[0] if len(plans) == 1 else mean_plan(plans, spec, policy, p, outliers)
    origin = "the only text" if len(plans) == 1 else f"the mean importance of {len(plans)} texts"
    if output is not None:
        final.save(output)
    if plot is not None:
        save(plan_figure(list(zip(sources, plans, strict=True))), plot)
    if as_json:
        print_json({
            "model": model_name,
            "prompts": [
                {"source": source, "tokens": len(tokens), "plan": made.to_dict()}
                for source, tokens, made in zip(sources, texts, plans, strict=True)
            ],
            "plan": final.to_dict(),
            "plan_from": origin,
            "output": None if output is None else str(output),
            "plot": None if plot is None else str(plot),
        })  # fmt: skip
        return
    if len(plans) > 1:
        OUT.print(_group_table(sources, plans))
        OUT.print(f"\nPlan from {origin}, at their mean base budget of {final.base_budget} tokens:")
    OUT.print(final)
    for what, path in ((f"plan from {origin}", output), ("figure", plot)):
        if path is not None:
            ERR.print(f"{what} saved: {path}", soft_wrap=True)


def mean_plan(
    plans: Sequence[BudgetPlan],
    allocator: str,
    policy: str,
    p: float | None = None,
    outliers: str | None = None,
) -> BudgetPlan:
    """One plan for several texts: the mean of their importance (each text counts once) and base budgets."""
    rows = [plan.importance for plan in plans if plan.importance is not None]
    limits = [[cap for cap in layer if cap is not None] for layer in zip(*(plan.caps for plan in plans), strict=True)]
    chosen = resolve_policy(policy)
    return build_plan(
        resolve_allocator(allocator, p=p, outliers=outliers),
        importance=[statistics.fmean(layer) for layer in zip(*rows, strict=True)],
        base_budget=round(statistics.fmean(plan.base_budget for plan in plans)),
        caps=[max(layer) if len(layer) == len(plans) else None for layer in limits],
        floor=chosen.minimum,
        signal=plans[0].signal,
        policy=chosen.name,
        prompt_tokens=round(statistics.fmean(plan.prompt_tokens or 1 for plan in plans)),
        model=plans[0].model,
    )


def _group_table(sources: list[str], plans: list[BudgetPlan]) -> Table:
    """Each text's groups: which layers, and how many tokens they keep."""
    groups = sorted({group for plan in plans for group in plan.groups})
    table = Table(header_style="bold")
    table.add_column("text", overflow="fold")
    table.add_column("tokens", justify="right")
    for group in groups:
        table.add_column(f"G{group}: layers", overflow="fold")
        table.add_column("keep", justify="right")
    for source, plan in zip(sources, plans, strict=True):
        cells = [source, str(plan.prompt_tokens)]
        for group in groups:
            members = [layer for layer, own in enumerate(plan.groups) if own == group]
            cells += [_ranges(members), _span([plan.budgets[layer] for layer in members])]
        table.add_row(*cells)
    return table


def _ranges(layers: list[int]) -> str:
    """``0, 3-5`` for 0, 3, 4, 5."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "-"


def _span(budgets: list[int]) -> str:
    if not budgets:
        return "-"
    low, high = min(budgets), max(budgets)
    return str(low) if low == high else f"{low}-{high}"

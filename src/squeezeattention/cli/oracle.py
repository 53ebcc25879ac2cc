"""``squeeze oracle``: what each layer's cache is worth, measured on replies that are known."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..errors import ConfigError
from ..extras import require
from ..plan import Budget
from ..plan.codec import DIRECTION
from . import options
from .console import ERR, OUT, print_json, progress_bar
from .inputs import check_target, load_model, remark_on_length

if TYPE_CHECKING:
    from ..oracle import Case, Losses, SignalRank

_LEGEND = (
    "alone: nats a reply token that cutting this layer adds, the others whole. round, together: the layers of all "
    "rounds up to this one are cut. Rank correlations (Spearman): 1 = the signal orders the layers as the losses do."
)


def oracle(
    model_name: options.Model,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", metavar="TASK", help="Any number of tasks; see `squeeze tasks`. [recall]"),
    ] = None,
    length: Annotated[int, typer.Option("--length", metavar="TOKENS", help="Tokens of a sample.")] = 512,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Contexts of each task and seed.")] = 4,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", "--seeds", metavar="N", help="Draw the samples. [0]")
    ] = None,
    policy: options.Policy = "streaming_llm",
    keep: Annotated[int, typer.Option("--keep", metavar="TOKENS", help="What a cut layer keeps.")] = 32,
    greedy: Annotated[
        bool, typer.Option("--greedy/--alone", help="Cut one layer more at a time, or each alone.")
    ] = True,
    budget: Annotated[
        str, typer.Option("--budget", "-b", metavar="BUDGET", help="At which signals are read (some depend on it).")
    ] = "0.2",
    signals: Annotated[
        list[str] | None, typer.Option("--signal", metavar="NAME", help="Hold these against the losses. [all]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the losses as JSON, for --allocator.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw losses and signals by layer as a PNG.")
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """Cut each layer and measure what known replies lose; hold signals against it.

    The losses are the reference for every rule that divides the cache: save them
    with -o and give the file as --allocator.
    """
    from ..evaluation import Settings
    from ..evaluation.runner import make_sample, token_counter
    from ..hf.layout import inspect_model
    from ..oracle import case_of, measure_layers, rank_signals, shown_by
    from ..plots import oracle_figure, save
    from ..policies import resolve_policy
    from ..signals import SIGNALS

    for target in (output, plot):
        check_target(target)
    if plot is not None:
        require("matplotlib", "plot")  # before the work, not after
    chosen = resolve_policy(policy)
    size = Budget.parse(budget)
    names = signals or shown_by(chosen)
    for name in names:
        SIGNALS.factory(name)
    if keep < chosen.minimum:
        raise ConfigError(f"--keep {keep} is too few: {policy} needs at least {chosen.minimum} tokens")
    settings = Settings(
        model_name, tuple(tasks or ("recall",)), (length,), samples, tuple(seeds or (0,)),
        policies=(policy,), allocators=("uniform",), budgets=(budget,),
    )  # fmt: skip
    makers = settings.make_tasks()
    model, tokenizer = load_model(model_name, dtype, device)
    remark_on_length(model, length)
    count = token_counter(tokenizer)
    cases = [case_of(make_sample(makers[key.task], count, key), tokenizer) for key in settings.samples_of_all()]
    with progress_bar() as progress:
        losses = measure_layers(
            model, cases, chosen, n_layers=len(inspect_model(model).windows), keep=keep, greedy=greedy,
            progress=lambda done, total: progress(done, total, "cutting layers"),
        )  # fmt: skip
    with progress_bar() as progress:
        ranks = rank_signals(
            model, cases, chosen, size, losses.added, losses.order, signals=names,
            progress=lambda done, total: progress(done, total, "reading signals"),
        )  # fmt: skip
    setting = {
        "model": model_name, "tasks": list(settings.tasks), "length": length, "samples": samples,
        "seeds": list(settings.seeds), "policy": policy, "keep": keep,
    }  # fmt: skip
    if output is not None:
        losses.allocator(setting).save(output)
    if plot is not None:
        save(oracle_figure(losses, ranks), plot)
    if as_json:
        print_json({
            **setting,
            "full": losses.full, "alone": losses.alone, "added": losses.added,
            "order": losses.order, "greedy": losses.greedy,
            "signals": [vars(rank) for rank in ranks],
            "signal_direction": DIRECTION,
            "output": None if output is None else str(output),
            "plot": None if plot is None else str(plot),
        })  # fmt: skip
        return
    _show(losses, ranks, cases, setting)
    for what, path in (("losses", output), ("figure", plot)):
        if path is not None:
            ERR.print(f"{what} saved: {path}", soft_wrap=True)


def _show(losses: Losses, ranks: Sequence[SignalRank], cases: Sequence[Case], setting: dict[str, Any]) -> None:
    full = statistics.fmean(losses.full)
    OUT.print(
        f"Loss of known replies, {len(cases)} contexts of {setting['length']} tokens: {full:.3f} nats a token with the "
        f"full cache; a cut layer keeps {setting['keep']} tokens ({setting['policy']})"
    )
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("layer", "alone", "worst", "round", "together"):
        table.add_column(title, justify="right")
    for layer, added in enumerate(losses.added):
        turn = losses.order.index(layer)
        worst = max(cut - whole for cut, whole in zip(losses.alone[layer], losses.full, strict=True))
        together = statistics.fmean(losses.greedy[turn]) - full
        table.add_row(str(layer), f"{added:+.3f}", f"{worst:+.3f}", str(turn + 1), f"{together:+.3f}")
    OUT.print(table)
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("signal")
    for title in ("rank, alone", "rank, greedy"):
        table.add_column(title, justify="right")
    table.add_column("layers, most important first")
    for rank in ranks:
        order = sorted(range(len(rank.signal_values)), key=lambda layer: rank.signal_values[layer])
        table.add_row(rank.signal, _number(rank.alone), _number(rank.greedy), " ".join(map(str, order[:12])))
    OUT.print(table)
    OUT.print(_LEGEND, style="dim")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"

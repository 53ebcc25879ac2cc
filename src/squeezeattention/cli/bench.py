"""``squeeze bench``: what a cache costs and gains in time and memory, against the hardware's bound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError
from ..extras import require
from ..plan import Budget
from . import options
from .console import ERR, OUT, print_json, progress_bar
from .inputs import check_target, device_of, dtype_of, load_model

_LEGEND = (
    "OOM: out of memory. tok/s: of decoding, all sequences; vs full: the full, dynamic cache's at the same batch. "
    "KV: keys and values at the end and at peak, MiB (M) or GiB (G). bound: the time that a step's weights and cache "
    "take at the bandwidth measured here, as a share of the step's. whole: tokens a second with the prompt's time; "
    "grown: of the process."
)


def bench(
    target: Annotated[
        str,
        typer.Argument(metavar="MODEL|SHAPE", help="As for other commands, or a shape with random weights; see below."),
    ],
    batches: Annotated[
        list[int] | None,
        typer.Option("--batch", metavar="N", min=1, help="Sequences at once; any number of times. [1]"),
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt", metavar="TOKENS", min=1, help="Tokens of a prompt.")] = 512,
    new: Annotated[int, typer.Option("--new", "-n", metavar="TOKENS", min=1, help="Tokens decoded after it.")] = 32,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", metavar="NAME", help="Which tokens stay. [all]")
    ] = None,
    allocators: Annotated[
        list[str] | None,
        typer.Option(
            "--allocator", metavar="NAME", help="Which layers and heads get more. [uniform and the policy's own]"
        ),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", "-b", metavar="BUDGET", help="Share, tokens or bytes.")] = "0.2",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Each variant through torch.compile as well; full: a static cache.")
    ] = False,
    search: Annotated[
        bool, typer.Option("--largest-batch", help="Find the largest batch that fits, for each variant.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="BYTES", help="What counts as out of memory. [what there is]")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option("--layers", metavar="N", min=1, help="Only so many layers of a shape, for small machines."),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Measure all of it so often; medians count.")
    ] = 1,
    kernels: options.Kernels = "auto",
    prefill: options.Prefill = "exact",
    chunk_size: options.ChunkSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw a PNG.")] = None,
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """Measure prompts, decode steps and memory with the full cache and with squeezed ones.

    Shapes: falcon-7b, gpt-neox-20b, llama2-7b, llama2-70b, llama3-8b, mistral-7b,
    mixtral-8x7b, opt-6.7b, qwen3-8b, small, tiny. Memory that runs out is a row of the table.
    """
    for path in (output, plot):
        check_target(path)
    if plot is not None:
        require("matplotlib", "plot")  # before the work, not after
    from ..bench import SHAPES, Workload, build, largest_batch, measure, measure_bandwidth, medians, variants_of
    from ..cache.options import checked_prefill, chosen_kernels
    from ..evaluation.environment import environment
    from ..hf.layout import inspect_model
    from ..kernels.choosing import checked

    Budget.parse(budget)
    checked_prefill(prefill)
    checked(kernels)
    chosen = variants_of(
        policies or ["streaming_llm", "h2o", DEFAULT_POLICY], allocators or [], budget=budget, compiled=compiled,
        prefill=prefill, chunk_size=chunk_size or 512, kernels=kernels,
    )  # fmt: skip
    for variant in chosen:
        if variant.policy is not None:
            options.check(budget, variant.policy, str(variant.allocator), None, None)
    most = None if memory is None else options.memory_bytes(memory)
    if target in SHAPES:
        kind = dtype_of(dtype)
        model = build(target, layers=layers, dtype=_default(kind, device), device=device_of(device))
    elif layers is not None:
        raise ConfigError("--layers is for shapes with random weights; a trained model is measured whole")
    else:
        model, _ = load_model(target, dtype, device)
    served = chosen_kernels(kernels, inspect_model(model))
    bandwidth = measure_bandwidth(model.device)
    wanted, runs = batches or [1], []
    with progress_bar() as progress:
        total, done = rounds * len(wanted) * len(chosen), 0
        for _ in range(rounds):
            for batch in wanted:
                for variant in chosen:
                    progress(done, total, f"{variant.name}, batch {batch}")
                    runs.append(measure(model, variant, Workload(batch, prompt, new), memory=most))
                    done += 1
        if search:
            for variant in chosen:
                known = [run.batch for run in runs if run.variant == variant.name and run.failed is None]

                def attempt(batch: int, variant: Any = variant) -> Any:
                    progress(done, total, f"{variant.name}, does batch {batch} fit?")
                    return measure(model, variant, Workload(batch, prompt, new), memory=most)

                runs += largest_batch(attempt, start=2 * max(known, default=1))
    summary = medians(runs)
    result = {
        "target": target, "layers": layers, "dtype": str(model.dtype).removeprefix("torch."), "prompt": prompt,
        "new": new, "budget": budget, "prefill": prefill, "kernels": served.name, "rounds": rounds, "memory": most,
        "bandwidth": vars(bandwidth), "environment": environment(),
        "runs": [run.to_dict(bandwidth.bytes_per_s) for run in runs],
    }  # fmt: skip
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")
    if plot is not None:
        from ..plots import save, speed_figure

        title = f"{target}, {result['dtype']}, prompt {prompt}, budget {budget}"
        save(speed_figure(summary, title, bandwidth.bytes_per_s), plot)
    if as_json:
        print_json(result)
        return
    OUT.print(
        f"{target}{'' if layers is None else f' ({layers} layers)'}, {result['dtype']} on {bandwidth.device}, "
        f"{bandwidth.threads} threads, {bandwidth.bytes_per_s / 1e9:.1f} GB/s measured; prompt {prompt}, {new} new, "
        f"budget {budget}; kernels: {served}"
    )
    for batch in sorted(set(wanted)):
        OUT.print(_table([run for run in summary if run.batch == batch], batch, bandwidth.bytes_per_s))
    for run in summary:
        if run.complaint is not None:
            OUT.print(Text(f"{run.variant}, batch {run.batch}: {run.complaint}", style="bold red"))
    for line in _attention(summary):
        OUT.print(line)
    if search:
        OUT.print(_largest(summary))
    OUT.print(_LEGEND, style="dim")
    for what, path in (("record", output), ("figure", plot)):
        if path is not None:
            ERR.print(f"{what} saved: {path}", soft_wrap=True)


def _default(dtype: Any, device: str) -> Any:
    """What ``auto`` stands for without trained weights: bf16 on a GPU, fp32 on a CPU."""
    import torch

    if dtype != "auto":
        return dtype
    return torch.bfloat16 if device_of(device).type == "cuda" else torch.float32


def _table(runs: Sequence[Any], batch: int, bytes_per_s: float) -> Table:
    """One batch; what a narrow terminal has no room for is in the JSON."""
    wide = OUT.width >= 104
    table = Table(title=f"batch {batch}", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD,
                  pad_edge=False)  # fmt: skip
    table.add_column("cache", no_wrap=True)
    for title in (
        "prompt",
        "ms/step",
        "tok/s",
        "vs full",
        "KV",
        *(("peak", "grown", "whole") if wide else ()),
        "bound",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    base = next((run.tokens_per_s for run in runs if run.variant == "full"), None)
    for run in runs:
        if run.failed is not None:
            table.add_row(run.variant, Text("OOM", style="red"))
            continue
        name = run.variant if run.complaint is None else Text(f"{run.variant} (no CUDA graphs)", style="bold red")
        table.add_row(
            name, f"{run.prefill_s:.2f} s", f"{1e3 * run.step_s:.1f}", f"{run.tokens_per_s:.1f}",
            "-" if base is None else f"{run.tokens_per_s / base:.2f}x", _size(run.kv_bytes),
            *((_size(run.kv_peak_bytes), _size(run.grown_bytes), f"{run.whole_tokens_per_s:.1f}") if wide else ()),
            f"{run.of_bound(bytes_per_s):.0%}",
        )  # fmt: skip
    return table


def _attention(runs: Sequence[Any]) -> list[str]:
    """Which kernels attended in a step, variants that used the same ones together."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        if run.attention is not None:
            names = groups.setdefault(", ".join(run.attention) or "matrix products", [])
            if run.variant not in names:
                names.append(run.variant)
    return [f"attention of a step by {kernels}: {'; '.join(names)}" for kernels, names in groups.items()]


def _largest(runs: Sequence[Any]) -> str:
    """The largest batch of each variant that was seen to fit, and its speed."""
    found = []
    for name in dict.fromkeys(run.variant for run in runs):
        best = max((run for run in runs if run.variant == name and run.failed is None), key=lambda run: run.batch,
                   default=None)  # fmt: skip
        found.append(f"{name}: " + ("none" if best is None else f"{best.batch} ({best.tokens_per_s:.1f} tok/s)"))
    return "largest batch that fits: " + "; ".join(found)


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**30:.2f}G" if count >= 2**30 else f"{count / 2**20:.1f}M"

"""``squeeze vllm plan``: a plan for vLLM, in whole blocks, and what it saves there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..allocators import name_or_plan
from ..engine import BlockPlan, EngineSettings, Forecast, PromptPlanner
from ..engine.lanes import MOST_GROUPS, lanes_of_all, lanes_without_waste
from ..engine.prompts import RULE, PerPrompt
from ..engine.settings import SINKS
from ..errors import BudgetError, ConfigError
from ..plan import BudgetPlan
from . import options
from .console import ERR, OUT, notice, print_json
from .inputs import check_target, load_config, load_model
from .observing import Recipe
from .stability import ranges
from .texts import Texts

if TYPE_CHECKING:  # it needs torch, and --help must not wait for it
    from ..engine.head_plans import HeadPlanner

app = typer.Typer(no_args_is_help=True)

_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


@app.callback()
def _group() -> None:
    """Plans for the vLLM engine."""


@app.command("plan")
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
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="streaming_llm or sliding_window: whole blocks; h2o and others: single tokens.",
        ),
    ] = "streaming_llm",
    allocator: options.AllocatorName = None,
    signal: options.SignalName = None,
    p: options.P = None,
    outliers: options.Outliers = None,
    sinks: options.Sinks = None,
    block_size: Annotated[
        int, typer.Option("--block-size", metavar="TOKENS", min=1, help="Tokens of a block of vLLM's cache.")
    ] = 16,
    by_head: Annotated[
        bool | None,
        typer.Option(
            "--by-head/--by-layer",
            help="Keep budgets of KV heads (single tokens), or give each layer their mean. [by head where the policy "
            "takes single tokens anyway]",
        ),
    ] = None,
    levels: Annotated[
        int, typer.Option("--levels", metavar="N", min=1, max=MOST_GROUPS, help="Different budgets at most.")
    ] = 4,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="BYTES", help="For keys and values, such as 8GiB: how many fit?")
    ] = None,
    kv_dtype: Annotated[
        str, typer.Option("--kv-dtype", metavar="NAME", help="Of the cache in vLLM: bfloat16, float16, float32 or fp8.")
    ] = "bfloat16",
    per_prompt: Annotated[
        bool,
        typer.Option(
            "--per-prompt",
            help=f"Foresee a server that divides the total for each prompt, by {RULE} unless --allocator is given: "
            "among layers, or, with probe, among all KV heads.",
        ),
    ] = False,
    output: options.Output = None,
    truncate: options.Truncate = False,
    chunk_size: options.ChunkSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """Measure layers on texts like yours, and plan vLLM's cache.

    Budgets are rounded to whole blocks, never to more in all, and to few different
    sizes, since layers of one size share a block table. Give the plan that is saved
    to `squeeze serve MODEL --plan FILE`.
    """
    from ..hf.layout import kv_shape
    from ..policies import StreamingLLM, resolve_policy

    check_target(output)
    if kv_dtype not in _DTYPES:
        raise ConfigError(f"--kv-dtype must be one of {', '.join(_DTYPES)}, got {kv_dtype!r}")
    size = None if memory is None else options.memory_bytes(memory)
    spec = name_or_plan(RULE if per_prompt and allocator is None else allocator)
    options.check(budget, policy, spec, p, outliers, signal)
    in_blocks = policy in SINKS
    if sinks is not None and not in_blocks:
        raise ConfigError(f"--sinks is of {' and '.join(SINKS)}, not of {policy!r}")
    leading = SINKS.get(policy, 0) if sinks is None else sinks
    texts = 0
    if isinstance(spec, BudgetPlan):
        frozen, config = spec, load_config(model_name)
        frozen.check_model(None, config.num_hidden_layers)
    else:
        asked = Texts.of(model_name, files, more_files, prompt, jsonl, tasks, lengths, samples, seeds)
        model, tokenizer = load_model(model_name, dtype, device)
        drawn = asked.tokenized(model, tokenizer, truncate=truncate)
        kind = StreamingLLM(leading) if policy == StreamingLLM.name else policy
        recipe = Recipe(budget, kind, spec, p, signal, outliers)
        frozen = recipe.freeze([one.plan for one in recipe.observe(model, drawn, chunk_size)])
        texts = len(drawn)
        config = model.config.get_text_config()
    heads, width = kv_shape(config)
    divides = PerPrompt.read({"allocator": spec} if isinstance(spec, str) else True, frozen) if per_prompt else None
    keeps_heads = _keeps_heads(by_head, frozen, in_blocks and not (divides is not None and divides.by_head))
    if keeps_heads:
        blocks = BlockPlan.of_heads(frozen, block_size, heads)
        kept = resolve_policy(policy, **({"sinks": leading} if policy == StreamingLLM.name else {}))
        rooms = blocks.rooms(frozen, heads, minimum=kept.minimum)
    else:
        blocks = BlockPlan.of(_raised(frozen, block_size), block_size, sinks=leading)
        blocks, rooms = blocks.leveled(levels), None
    rounded = _in_blocks(frozen, blocks, policy, rooms)
    if frozen.head_budgets is not None and not keeps_heads and by_head is None:
        notice(
            "the plan's budgets by KV head become each layer's mean, since whole blocks are shared by all heads of a "
            "layer; --by-head keeps them"
        )
    given = {"plan": rounded.to_dict(), "policy": policy, "sinks": leading,
             "per_prompt": None if divides is None else divides.to_dict()}  # fmt: skip
    settings = EngineSettings.read(given)
    planner, pool = settings.planner(block_size), settings.head_planner(block_size)
    token_bytes = 2 * heads * width * _DTYPES[kv_dtype]  # keys and values of one token in one layer
    if pool is not None:
        forecast = Forecast(pool.nominal(), lanes_of_all(pool.nominal().layers), token_bytes, size)
    elif keeps_heads:
        forecast = Forecast(blocks, lanes_without_waste(blocks.layers), token_bytes, size)
    elif planner is None:
        forecast = Forecast.of(blocks, token_bytes, size)
    else:
        forecast = Forecast(planner.nominal(), planner.lanes(), token_bytes, size)
    if output is not None:
        rounded.save(output)
    if as_json:
        print_json({
            "model": model_name, "texts": texts, "plan": rounded.to_dict(), "sinks": leading, "policy": policy,
            "per_prompt": None if planner is None else [list(layers) for layers in planner.members],
            "forecast": forecast.to_dict(), "output": None if output is None else str(output),
        })  # fmt: skip
        return
    if pool is not None:
        OUT.print(_pool_table(pool, heads))
    elif keeps_heads:
        OUT.print(_head_table(rounded, blocks))
    else:
        OUT.print(_layer_table(rounded, blocks) if planner is None else _group_table(planner))
    OUT.print(_forecast_table(forecast, frozen, config))
    if output is not None:
        ERR.print(f"plan saved: {output}", soft_wrap=True)
        command = _command(model_name, str(output), forecast, leading, policy)
        if divides is not None:
            command += " --per-prompt" + (f" --allocator {divides.allocator}" if divides.by_head else "")
        OUT.print(command, soft_wrap=True, markup=False)


def _raised(frozen: BudgetPlan, block_size: int) -> BudgetPlan:
    """Budgets below a block are given one, at the cost of the largest: measured plans may have such layers."""
    budgets = list(frozen.budgets)
    for layer, tokens in enumerate(budgets):
        lack = max(0, block_size - tokens)
        budgets[layer] += lack
        while lack:
            richest = max(range(len(budgets)), key=budgets.__getitem__)
            given = min(lack, budgets[richest] - block_size)
            if given <= 0:
                raise BudgetError(
                    f"{frozen.total} tokens cannot give each of {len(budgets)} layers a block of {block_size}: "
                    "use a larger --budget or a smaller --block-size"
                )
            budgets[richest] -= given
            lack -= given
    return BudgetPlan.from_budgets(budgets)


def _keeps_heads(asked: bool | None, frozen: BudgetPlan, in_blocks: bool) -> bool:
    """Whether budgets of KV heads are kept. Raises :class:`ConfigError` if there are none to keep."""
    if frozen.head_budgets is not None:
        return not in_blocks if asked is None else asked
    if asked:
        raise ConfigError(
            f"--by-head needs a plan with budgets by KV head, and allocator {frozen.allocator!r} makes none: use "
            "--allocator calibrated or probe"
        )
    return False


def _in_blocks(
    frozen: BudgetPlan, blocks: BlockPlan, policy: str, rooms: tuple[tuple[int, ...], ...] | None
) -> BudgetPlan:
    """The plan with budgets as the blocks round them; ``rooms``: of KV heads, or ``None`` where they are equal."""
    return dataclasses.replace(
        frozen, budgets=blocks.tokens, head_budgets=rooms,
        base_budget=-(-sum(blocks.tokens) // len(blocks.tokens)), floor=1, policy=policy,
        caps=(None,) * len(blocks.tokens), exact_total=sum(blocks.tokens),
    ).check()  # fmt: skip


def _head_table(rounded: BudgetPlan, blocks: BlockPlan) -> Table:
    table = Table(title="Tokens of each KV head, which fill their layer's blocks", header_style="bold",
                  title_justify="left")  # fmt: skip
    table.add_column("layer", justify="right")
    table.add_column("blocks", justify="right")
    table.add_column("tokens", overflow="fold")
    for layer, (own, heads) in enumerate(zip(blocks.layers, rounded.head_budgets or (), strict=True)):
        table.add_row(str(layer), str(own.total), " ".join(f"{tokens:,}" for tokens in heads))
    return table


def _layer_table(rounded: BudgetPlan, blocks: BlockPlan) -> Table:
    table = Table(title="Blocks of each layer", header_style="bold", title_justify="left")
    table.add_column("layers", overflow="fold")
    for title in ("sink blocks", "newest blocks", "tokens", "share"):
        table.add_column(title, justify="right")
    for kind in sorted(set(blocks.layers), reverse=True):
        members = [layer for layer, own in enumerate(blocks.layers) if own == kind]
        tokens = kind.total * blocks.block_size
        share = tokens * len(blocks.layers) / rounded.total
        table.add_row(ranges(members), str(kind.sinks), str(kind.recent), f"{tokens:,}", f"{share:.2f}")
    return table


def _group_table(planner: PromptPlanner) -> Table:
    table = Table(title="Layers that go together, most important first", header_style="bold", title_justify="left")
    table.add_column("layers", overflow="fold")
    table.add_column("least tokens", justify="right")
    table.add_column("mean tokens", justify="right")
    for layers in planner.members:
        table.add_row(ranges(list(layers)), f"{planner.least:,}", f"{planner.base_budget:,}")
    return table


def _pool_table(pool: HeadPlanner, heads: int) -> Table:
    table = Table(show_header=False, title="Divided among all KV heads", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("tokens of a KV head, mean", f"{pool.base_budget:,}")
    table.add_row("... least", f"{pool.policy.minimum:,}")
    table.add_row("all together, anew for each prompt", f"{pool.base_budget * pool.n_layers * heads:,}")
    return table


def _forecast_table(forecast: Forecast, frozen: BudgetPlan, config: Any) -> Table:
    table = Table(show_header=False, title="In vLLM, once a prompt is read", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    lanes, longest = forecast.lanes, getattr(config, "max_position_embeddings", None)
    kept = forecast.blocks.total * forecast.blocks.block_size
    table.add_row("tokens kept per layer, mean (planned)", f"{kept / len(forecast.blocks.layers):,.0f} "
                  f"({frozen.total / frozen.n_layers:,.0f})")  # fmt: skip
    table.add_row("groups of layers (block tables)", f"{lanes.n_groups} of {lanes.group_size}")
    table.add_row("memory lost to padding", f"{forecast.waste:.1%}")
    table.add_row("blocks per sequence", f"{lanes.blocks_per_sequence}")
    table.add_row("bytes per sequence", f"{forecast.sequence_bytes / 2**20:,.2f} MiB")
    if forecast.max_num_seqs is not None:
        table.add_row("blocks in that memory", f"{forecast.n_blocks:,}")
        table.add_row("sequences without preemption: --max-num-seqs", f"{forecast.max_num_seqs:,}")
        if isinstance(longest, int):
            table.add_row(f"... without a plan, of {longest:,} tokens", f"{forecast.stock_seqs(longest):,}")
    return table


def _command(model_name: str, output: str, forecast: Forecast, sinks: int, policy: str) -> str:
    parts = ["squeeze", "serve", model_name, "--plan", output, "--block-size", str(forecast.blocks.block_size)]
    if sinks != SINKS.get(policy, 0):
        parts += ["--sinks", str(sinks)]
    if forecast.max_num_seqs:
        parts += ["--max-num-seqs", str(forecast.max_num_seqs)]
    return " ".join(parts)

"""``squeeze why``: where right answers look in a text, and what of it each way of cutting evicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from ..defaults import DEFAULT_ALLOCATOR, DEFAULT_POLICY
from ..embedded import NAME as EMBEDDED
from ..errors import ConfigError
from ..extras import require
from . import options
from .console import ERR, OUT, print_json, progress_bar
from .inputs import check_target, load_model, remark_on_length

if TYPE_CHECKING:
    from ..evaluation import Why

_LEGEND = (
    "needed attention kept: of what the right answers look at in the text, the share that a head can still look at "
    "where it did. heads: how many of those that have half of it, with all of the text, keep at least 90 % of theirs."
)


def why(
    model_name: options.Model,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", metavar="TASK", help="Whose answers are copied from its texts. [facts]"),
    ] = None,
    length: Annotated[int, typer.Option("--length", metavar="TOKENS", help="Tokens of a sample.")] = 1200,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Contexts.")] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draws the samples.")] = 0,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME/ALLOCATOR",
            help=f"A way to cut; any number. [h2o/uniform, h2o/squeeze, {DEFAULT_POLICY}/{DEFAULT_ALLOCATOR}]",
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None, typer.Option("--budget", "-b", metavar="BUDGET", help="Share, tokens or bytes. [0.2]")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw what is needed and what is evicted as a PNG.")
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """See which KV heads the answers need, and what each cache has thrown away.

    The full cache answers questions rightly by looking at the answer's place in
    the text. This measures how much each KV head looks there, cuts the cache in
    each way, and says how much of it is left.
    """  # fmt: skip
    from .. import evaluation
    from ..evaluation.runner import make_sample, token_counter
    from ..plots import needed_figure, save

    check_target(plot)
    if plot is not None:
        require("matplotlib", "plot")  # before the work, not after
    ways = tuple(policies or ("h2o/uniform", "h2o/squeeze", f"{DEFAULT_POLICY}/{DEFAULT_ALLOCATOR}"))
    if bare := [way for way in ways if "/" not in way]:
        raise ConfigError(f"--policy {bare[0]!r} names no allocator: give both, such as {bare[0]}/uniform")
    name = task or ("recall" if model_name == EMBEDDED else "facts")
    settings = evaluation.Settings(
        model_name, (name,), (length,), samples, (seed,), policies=ways, budgets=tuple(budgets or ("0.2",))
    )
    [maker] = settings.make_tasks().values()
    model, tokenizer = load_model(model_name, dtype, device)
    remark_on_length(model, length)
    count = token_counter(tokenizer)
    contexts = [make_sample(maker, count, key) for key in settings.samples_of_all()]
    configs = [config for config in settings.configs() if config.policy is not None]
    with progress_bar() as progress:
        found = evaluation.why(model, tokenizer, maker, contexts, configs, progress)
    if plot is not None:
        save(needed_figure(found), plot)
    if as_json:
        setting = {"model": model_name, "task": name, "length": length, "samples": samples, "seed": seed}
        print_json({**setting, **found.to_dict(), "plot": None if plot is None else str(plot)})
        return
    _show(found)
    if plot is not None:
        ERR.print(f"figure saved: {plot}", soft_wrap=True)


def _show(found: Why) -> None:
    from ..evaluation.columns import budget_label, label

    need, leading = found.need, found.need.leading()
    units = sum(map(len, need.heads))
    first = ", ".join(f"layer {layer} head {head}" for layer, head in leading[:6])
    OUT.print(
        f"{need.questions} questions: the right answers stand in {need.tokens} tokens. Half of the attention that they "
        f"need is in {len(leading)} of {units} KV heads ({first}{', ...' if len(leading) > 6 else ''})."
    )
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy")
    table.add_column("allocator")
    for title in ("budget", "bytes", "needed attention kept", "heads", "answers right"):
        table.add_column(title, justify="right")
    for way in found.ways:
        whole = sum(way.heads[layer][head] >= 0.9 * need.heads[layer][head] for layer, head in leading)
        table.add_row(
            label(None if way.config.policy is None else str(way.config.policy)),
            "" if way.config.allocator is None else label(str(way.config.allocator)),
            budget_label(way.config.budget), f"{way.bytes:.0%}", f"{way.share:.0%}", f"{whole} of {len(leading)}",
            f"{way.right:.0%}",
        )  # fmt: skip
    OUT.print(table)
    OUT.print(_LEGEND, style="dim")

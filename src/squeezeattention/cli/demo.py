"""``squeeze demo``: the main job on real input, in a few minutes, without a download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..extras import require
from . import options
from .console import ERR, OUT, print_json
from .inputs import check_folder, load_model


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the results go.")] = Path("squeeze-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter contexts.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draws contexts, facts and their places.")] = 0,
    p: options.P = None,
    length: Annotated[int | None, typer.Option("--length", metavar="TOKENS", help="Tokens of a context.")] = None,
    contexts: Annotated[int | None, typer.Option("--contexts", metavar="N", help="How many contexts.")] = None,
    facts: Annotated[
        int | None, typer.Option("--facts", metavar="N", help="Facts, and questions, in each context.")
    ] = None,
    model_name: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Another model than the embedded: smollm2, ...")
    ] = ("embedded"),
    as_json: options.Json = False,
) -> None:
    """A model reads long source code with facts in it and is asked for them, with full and squeezed caches.

    Questions come after the context was read and cut: nothing can be kept because it will be asked for.
    """
    from .. import demo as scenario

    require("matplotlib", "plot")  # before minutes of work, not after
    check_folder(out)
    base = scenario.QUICK if quick else scenario.FULL
    sizes = {"length": length, "contexts": contexts, "facts": facts}
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    settings = dataclasses.replace(base, seed=seed, p=p, **given)
    model, tokenizer = load_model(model_name)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        begun = -1

        def step(total: int, what: str) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, total=total, completed=begun, description=what)

        result = scenario.run(model, tokenizer, settings, step)
    paths = scenario.write_files(result, out)
    if as_json:
        print_json({**scenario.to_json(result), "files": [str(path) for path in paths]})
        return
    sources = ", ".join(dict.fromkeys(context.source for context in result.contexts))
    OUT.print(
        f"{len(result.contexts)} contexts of about {settings.length:,} tokens with {settings.facts} facts "
        f"each, from {sources}; {result.full.score.n} questions, greedy decoding, {result.seconds:.0f} s\n"
    )
    OUT.print(scenario.table(result, OUT.width))
    OUT.print(scenario.LEGEND, style="dim")
    OUT.print(Padding(scenario.findings(result), (1, 0)))
    for path in paths:
        OUT.print(str(path), soft_wrap=True)

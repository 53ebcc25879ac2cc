"""``squeeze demo``: the main job on a real model, in a few minutes, without a download."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding

from ..embedded import NAME as EMBEDDED
from ..errors import MissingExtraError, UnsupportedFeatureError
from ..extras import require
from ..smollm2 import NAME as SMOLLM2
from ..smollm2 import smollm2_file
from . import options
from .console import OUT, notice, print_json, progress_bar
from .inputs import check_folder, load_model


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the results go.")] = Path("squeeze-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter texts.")] = False,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="A chapter of your own to put the facts into (UTF-8).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draws texts, facts and their places.")] = 0,
    p: options.P = None,
    length: Annotated[int | None, typer.Option("--length", metavar="TOKENS", help="Tokens of a text.")] = None,
    contexts: Annotated[int | None, typer.Option("--contexts", metavar="N", help="How many texts.")] = None,
    facts: Annotated[
        int | None, typer.Option("--facts", metavar="N", help="Facts, and questions, in each text.")
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Default: smollm2 where it is installed, else embedded."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """A model reads a chapter with facts in it and is asked for them, with full and squeezed caches.

    Questions come after the text was read and the cache was cut: nothing can
    be kept because it will be asked for.
    """
    # Threads that wait for one another busily are ten times slower where another program uses a core. (Read once, when
    # torch is imported.)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from .. import demo as scenario
    from ..tasks.prose import text_of

    require("matplotlib", "plot")  # before minutes of work, not after
    check_folder(out)
    if text is not None:
        text_of(text)  # raises, before a model is unpacked
    name = _model_at_hand() if model_name is None else model_name
    kind = "code" if name == EMBEDDED else "prose"  # the embedded model knows nothing else
    sizes = {"length": length, "contexts": contexts, "facts": facts}
    given: dict[str, Any] = {size: value for size, value in sizes.items() if value is not None}
    base = (scenario.QUICK if quick else scenario.FULL)[kind]
    settings = dataclasses.replace(base, seed=seed, p=p, text=text, **given)
    model, tokenizer = load_model(name)
    with progress_bar() as progress:
        begun = -1

        def step(total: int, what: str) -> None:
            nonlocal begun
            begun += 1
            progress(begun, total, what)

        result = scenario.run(model, tokenizer, settings, step)
    paths = scenario.write_files(result, out)
    if as_json:
        print_json({"model": name, **scenario.to_json(result), "files": [str(path) for path in paths]})
        return
    sources = ", ".join(dict.fromkeys(context.source for context in result.contexts))
    count = len(result.contexts)
    texts = f"{count} text{'s' * (count > 1)}"
    OUT.print(
        f"{name} reads {texts} of about {settings.length:,} tokens with {settings.facts} facts in each ({sources}). "
        f"The cache is cut, and only then are the facts asked for: {result.full.score.n} "
        f"questions, greedy decoding, {result.seconds:.0f} s.\n"
    )
    OUT.print("Questions about the first text, and the answers:", style="bold")
    OUT.print(scenario.examples(result))
    OUT.print("All texts:", style="bold")
    OUT.print(scenario.table(result))
    OUT.print(scenario.LEGEND, style="dim")
    for sentence in scenario.findings(result):
        OUT.print(Padding(sentence, (1, 0, 0, 0)))
    OUT.print()
    for path in paths:
        OUT.print(str(path), soft_wrap=True)


def _model_at_hand() -> str:
    """SmolLM2 where it can be used; else the embedded model, and a word on why."""
    from ..gguf_models import check_installed

    try:
        smollm2_file()
        check_installed()
    except (MissingExtraError, UnsupportedFeatureError) as error:
        notice(f"no {SMOLLM2} here: {error}. The small model of this package stands in, which reads source code")
        return EMBEDDED
    return SMOLLM2

"""``squeeze calibrate``: which KV heads of a model look back, measured once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..defaults import CALIBRATION_PART
from . import options
from .console import ERR, OUT, print_json, progress_bar
from .inputs import check_target, load_model
from .texts import Texts

if TYPE_CHECKING:
    from ..calibration import Calibration


def calibrate(
    model_name: options.Model,
    more_files: options.MoreFiles = None,
    files: options.Files = None,
    prompt: options.PromptText = None,
    jsonl: options.JsonLines = None,
    tasks: options.Tasks = None,
    lengths: options.Lengths = None,
    samples: options.Samples = None,
    seeds: options.Seeds = None,
    part: Annotated[
        int, typer.Option("--part", metavar="TOKENS", help="Longer texts are read in parts of so many tokens.")
    ] = CALIBRATION_PART,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it here. [the user's cache, where it is found]"),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """Find the KV heads that look back, once for a model: --allocator calibrated.

    The model reads the texts and then reads them again; the heads that find
    the first time when the second comes are those that retrieve. Some pages
    of any text of the kind that the model reads are enough.

    Texts are files, -p TEXT, samples of tasks, or stdin.
    """
    from ..calibration import calibrate as measure
    from ..calibration import keep

    check_target(output)
    asked = Texts.of(model_name, files, more_files, prompt, jsonl, tasks, lengths, samples, seeds)
    model, tokenizer = load_model(model_name, dtype, device)
    texts = [text.tokens for text in asked.tokenized(model, tokenizer, in_parts=True)]
    with progress_bar() as progress:
        found = measure(
            model, tokenizer, texts, length=part,
            progress=lambda done, total: progress(done, total, "reading twice"),
        )  # fmt: skip
    if output is None:
        output = keep(found)
    else:
        found.save(output)
    if as_json:
        print_json({"model": model_name, "shape": found.model, "texts": found.texts, "tokens": found.tokens,
                    "needs": found.needs, "output": str(output)})  # fmt: skip
        return
    OUT.print(f"{found.model}: percent of a text that each KV head looks back at", style="bold")
    OUT.print(_table(found))
    heads = sorted((need for layer in found.needs for need in layer), reverse=True)
    half = next((n for n in range(1, len(heads)) if sum(heads[:n]) >= sum(heads) / 2), len(heads))
    OUT.print(f"\n{half} of {len(heads)} KV heads have half of all need ({found.tokens:,} tokens were read twice).")
    ERR.print(f"calibration saved: {output}", soft_wrap=True)


def _table(found: Calibration) -> Table:
    """A row a layer, its heads' needs in percent."""
    table = Table(header_style="bold")
    table.add_column("layer", justify="right")
    most = max(map(len, found.needs))
    shown = min(most, 16)
    for head in range(shown):
        table.add_column(f"{head}", justify="right")
    if shown < most:
        table.add_column("…")
    for index, layer in enumerate(found.needs):
        cells = [f"{100 * need:.0f}" for need in layer[:shown]]
        table.add_row(str(index), *cells, *(["…"] if shown < most else []))
    return table

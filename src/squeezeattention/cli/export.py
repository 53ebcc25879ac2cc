"""``squeeze export``: a plan for other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engine.export import as_yaml, tensorrt_llm
from ..plan import BudgetPlan
from .console import ERR
from .inputs import check_target

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Plans for other engines."""


@app.command("tensorrt-llm")
def to_tensorrt_llm(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="What `squeeze plan` or `squeeze vllm plan` saved.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead of to stdout.")
    ] = None,
) -> None:
    """A window per layer, as options of TensorRT-LLM's LLM API.

    trtllm-serve MODEL --extra_llm_api_options FILE
    """
    check_target(output)
    text = as_yaml(tensorrt_llm(BudgetPlan.load(plan)))
    if output is None:
        typer.echo(text, nl=False)
        return
    output.write_text(text)
    ERR.print(f"options saved: {output}", soft_wrap=True)

"""``squeeze serve``: vLLM's OpenAI server with a plan."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from ..engine import EngineSettings
from ..engine.serving import API_KEY, check_installed, run_server, server_command
from ..errors import ConfigError
from ..loading import check_there
from ..named import named_folder
from . import options
from .console import ERR, notice
from .inputs import load_config


def serve(
    context: typer.Context,
    model_name: options.Model,
    plan: Annotated[
        list[Path],
        typer.Option(
            "--plan",
            metavar="FILE",
            help="What `squeeze vllm plan` saved; several times: plans by KV head for prompts of different lengths.",
        ),
    ],
    prefill: Annotated[
        str,
        typer.Option(
            "--prefill",
            metavar="full|windowed",
            help="full: prompts are attended to in full, then cut. windowed: never more than the budget is held.",
        ),
    ] = "full",
    per_prompt: Annotated[
        bool, typer.Option("--per-prompt", help="Divide the plan's total anew for each prompt, by its own signal.")
    ] = False,
    allocator: Annotated[
        str | None,
        typer.Option(
            "--allocator",
            metavar="NAME",
            help="With --per-prompt: squeeze (among layers, by their cosine) or probe (among KV heads, by what they "
            "look back at); by default what suits the plan.",
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups", metavar="N", min=1, help="With --per-prompt: groups of layers with budgets of their own."
        ),
    ] = None,
    sinks: options.Sinks = None,
    block_size: Annotated[
        int, typer.Option("--block-size", metavar="TOKENS", min=1, help="Tokens of a block, as planned.")
    ] = 16,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            "--max-num-seqs", metavar="N", min=1, help="Texts at once; `squeeze vllm plan` says how many fit."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar=API_KEY,
            help="What clients have to send; others on the machine can read what is given here, but not the variable.",
        ),
    ] = None,
) -> None:
    """Serve a model with vLLM, its cache as planned.

    The embedded model has no chat template: ask it at /v1/completions.

    Everything after -- goes to vLLM's server:
    squeeze serve MODEL --plan plan.json -- --max-model-len 32768
    """
    check_installed()
    given: dict[str, object] = {"plan": [str(path) for path in plan], "prefill": prefill}
    if sinks is not None:
        given["sinks"] = sinks
    for name, value in (("--groups", groups), ("--allocator", allocator)):
        if value is not None and not per_prompt:
            raise ConfigError(f"{name} is of --per-prompt; give both")
    if per_prompt:
        given["per_prompt"] = {"groups": groups} | ({} if allocator is None else {"allocator": allocator})
    settings = EngineSettings.read(given)
    named = named_folder(model_name, warn=notice, tell=notice)
    if named is None:
        check_there(model_name, "serve")
    folder = named or Path(model_name)
    if (folder / "config.json").is_file():  # else it is on the hub, and the engine checks it
        for one in settings.plans.values:
            one.check_model(None, load_config(str(folder)).num_hidden_layers)
    settings.check(block_size)
    command = server_command(
        model_name if named is None else str(named), settings, block_size=block_size, host=host, port=port,
        name=None if named is None else model_name, max_num_seqs=max_num_seqs, more=context.args,
    )  # fmt: skip
    divided = f", divided anew for each prompt by {settings.per_prompt.allocator}" if settings.per_prompt else ""
    files = ", ".join(map(str, plan))
    ERR.print(
        f"serving {model_name} at http://{host}:{port}/v1 (plan {files}{divided}, prefill {settings.prefill})",
        soft_wrap=True,
    )
    code = run_server(command, host, api_key)
    # Ended because it was asked to: vLLM says 0, or the signal.
    raise typer.Exit(0 if code in (-signal.SIGTERM, -signal.SIGINT) else code)

"""The commands put together; what an error looks like and which exit code it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import SqueezeError
from . import bench, calibrate, chat, demo, evaluate, export, generate, listing, oracle, plan, serve, vllm, why
from .console import complain, notice


def _make_readable(command: Any) -> None:
    """No type behind flags in the help of a command and all below it: that it is a bool says nothing to a reader."""
    for param in command.params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    for below in getattr(command, "commands", {}).values():
        _make_readable(below)


class _Group(TyperGroup):
    """Errors of a user: one line, exit code 2. Ctrl-C: 130. Anything else is a bug: traceback and 1."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _make_readable(self)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SqueezeError as error:
            complain(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            notice("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A language model remembers what it reads in its KV cache, which grows with every token. Here it keeps what "
    "matters within a budget. Begin with `squeeze demo`; MODEL may be `smollm2`, a folder or a name on the hub.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"squeezeattention {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def _add(panel: str, name: str, line: str, command: Callable[..., None] | typer.Typer, **settings: Any) -> None:
    """A command, with its ``line`` among all commands; its own help text is longer."""
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name, short_help=line, rich_help_panel=panel)
    else:
        app.command(name, short_help=line, rich_help_panel=panel, **settings)(command)


_add("Use", "demo", "See what a small cache forgets: minutes, without a download.", demo.demo)
_add("Use", "generate", "Ask a model once, or go on with a text.", generate.generate)
_add("Use", "chat", "Talk with a model over several turns.", chat.chat)
_add("Plans", "plan", "How the cache would be divided on your texts; save it.", plan.plan)
_add("Plans", "calibrate", "Find what a model looks back with, once for all prompts.", calibrate.calibrate)
_add("Plans", "export", "Plans as other engines take them (TensorRT-LLM).", export.app)
_add("Measure", "eval", "Answers against bytes: tasks x policies x budgets, resumable.", evaluate.app)
_add("Measure", "bench", "Speed and memory beside the full cache.", bench.bench)
_add("Measure", "oracle", "What each layer's cache is worth to known replies.", oracle.oracle)
_add("Measure", "why", "Why a question failed: what its answer needs, and what was lost.", why.why)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": False}
_add("Serve", "vllm", "Make plans for the vLLM engine.", vllm.app)
_add("Serve", "serve", "Serve a model with vLLM, its cache as planned.", serve.serve, context_settings=_PASSED_ON)
_add("Lists", "models", "Models that work, and those that are refused.", listing.models)
_add("Lists", "policies", "Rules for which tokens stay.", listing.policies)
_add("Lists", "allocators", "Rules that divide the cache among layers and heads.", listing.allocators)
_add("Lists", "signals", "What tells layers that matter from others.", listing.signals)
_add("Lists", "tasks", "What models are asked in `squeeze eval`.", listing.tasks)

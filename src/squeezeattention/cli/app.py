"""The commands put together; what an error looks like and which exit code it has."""

from __future__ import annotations

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
    help="SqueezeAttention: a KV cache whose layers hold as many tokens as they need.",
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


app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("plan")(plan.plan)
app.command("calibrate")(calibrate.calibrate)
app.command("oracle")(oracle.oracle)
app.command("why")(why.why)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)
app.add_typer(evaluate.app, name="eval", help="Evaluate caches on tasks; `eval report`, `eval rerun`.")
app.add_typer(vllm.app, name="vllm", help="Plans for the vLLM engine; `vllm plan`.")
app.add_typer(export.app, name="export", help="Plans for other engines: `export tensorrt-llm`.")
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": False})(serve.serve)
app.command("tasks")(listing.tasks)
app.command("models")(listing.models)
app.command("policies")(listing.policies)
app.command("allocators")(listing.allocators)
app.command("signals")(listing.signals)

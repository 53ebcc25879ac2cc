"""``squeeze chat``: several turns with a model, on one squeezed cache."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..allocators import name_or_plan
from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError, InputError, SqueezeError
from . import drawing, options
from .console import ERR, complain, notice
from .inputs import load_model

if TYPE_CHECKING:
    from ..chat import Conversation, Reply

_COMMANDS = {
    "/reset": "begin anew",
    "/system": "TEXT: begin anew with another system prompt (alone: show it)",
    "/plan": "how the cache is divided",
    "/exit": "leave, as Ctrl-D and Ctrl-C do",
}


def chat(
    model_name: options.Model,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template: each line is read as it is, right after the text so far.")
    ] = False,
    reread: Annotated[
        bool, typer.Option("--reread", help="Read all turns again where the template changes earlier ones.")
    ] = False,
    budget: options.ChatBudget = None,
    policy: options.Policy = DEFAULT_POLICY,
    allocator: options.AllocatorName = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", metavar="N", min=1, help="Length of an answer, at most.")
    ] = 512,
    sample: drawing.Sample = False,
    temperature: drawing.Temperature = None,
    top_p: drawing.TopP = None,
    top_k: drawing.TopK = None,
    seed: drawing.Seed = None,
    prefill: options.Prefill = "exact",
    compiled: options.Compiled = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    include: options.Include = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a turn on stdout instead, each a line.")] = (
        False
    ),
) -> None:
    """Talk with an instruct model; one squeezed cache is kept over all turns.

    Answers go to stdout as they are made. After each, a line on stderr says what
    the cache holds and what a full one would. From a pipe each line is a message,
    and the first error ends the command. Commands: /reset, /system TEXT, /plan,
    /exit; a message that begins with a slash is written with two.
    """
    draws = drawing.draws(sample, temperature, top_p, top_k, seed)
    if raw and system is not None:
        raise ConfigError("--system is of the chat template, which --raw leaves out: choose one of them")
    spec = name_or_plan(allocator)
    options.check(budget, policy, spec, None, None)

    import torch

    from ..chat import Conversation

    model, tokenizer = load_model(model_name, dtype, device)
    talk = Conversation(
        model, tokenizer, budget=budget, policy=policy, allocator=spec, system=system, raw=raw, reread=reread,
        prefill=prefill, compile=compiled,
    )  # fmt: skip
    torch.manual_seed(seed or 0)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sample, **draws}
    asked = sys.stdin.isatty()
    if asked:
        ERR.print(f"{model_name}: " + "; ".join(f"{name} {what}" for name, what in _COMMANDS.items()), style="dim")
    for line in _typed() if asked else _piped():
        try:
            if not _answer(talk, line, settings, as_json):
                break
        except SqueezeError as error:
            if not asked:
                raise
            complain(error)


def _typed() -> Iterator[str]:
    """Lines from a terminal, until Ctrl-D."""
    import contextlib

    with contextlib.suppress(ImportError):  # arrow keys and earlier lines, where there is one
        import readline  # noqa: F401
    while True:
        try:
            if sys.stdout.isatty():
                line = input("> ")
            else:  # the prompt is no part of the result
                ERR.print("> ", end="")
                line = input()
        except EOFError:
            ERR.print()
            return
        except UnicodeDecodeError:
            complain(InputError("this line is not UTF-8 text"))
            continue
        yield line


def _piped() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"line {number} of stdin is not UTF-8 text") from error


def _answer(talk: Conversation, line: str, settings: dict[str, Any], as_json: bool) -> bool:
    """Do what a line asks for; False to leave."""
    if not line.strip():
        return True
    if line.startswith("/") and not line.startswith("//"):
        return _command(talk, line, as_json)
    text = line[1:] if line.startswith("//") else line
    reply = talk.send(text, None if as_json else _write, **settings)
    if as_json:
        _print_object({"message": text, **dataclasses.asdict(reply), "turn": len(talk.turns) // 2})
        return True
    _write("\n")
    ERR.print(_told(reply), style="dim", soft_wrap=True)
    return True


def _command(talk: Conversation, line: str, as_json: bool) -> bool:
    name, _, text = line.partition(" ")
    text = text.strip()
    if name not in _COMMANDS or (text and name != "/system"):
        known = ", ".join(f"{one} TEXT" if one == "/system" else one for one in _COMMANDS)
        raise ConfigError(f"unknown command {line!r}; there are {known} (a message that begins with a slash: //...)")
    if name == "/reset":
        talk.reset()
        notice("all turns are forgotten")
    elif name == "/system" and text:
        talk.set_system(text)
        notice("all turns are forgotten; the system prompt is set")
    elif name == "/system":
        notice("there is no system prompt" if talk.system is None else f"system prompt: {talk.system}")
    elif name == "/plan":
        _show_plan(talk, as_json)
    return name != "/exit"


def _show_plan(talk: Conversation, as_json: bool) -> None:
    plan = talk.cache.plan
    if as_json:
        _print_object({"plan": None if plan is None else plan.to_dict()})
    elif plan is None:
        notice("there is no plan before the first message")
    else:
        ERR.print(plan)


def _told(reply: Reply) -> str:
    """What a turn took, in one line."""
    from ..evaluation.columns import bytes_text

    rate = "" if reply.tokens_per_s is None else f", {reply.tokens_per_s:.1f} tokens/s"
    end = "" if reply.finished else ", cut off (-n)"
    return (
        f"{bytes_text(reply.bytes)} held, a full cache {bytes_text(reply.full_bytes)} | {reply.read} tokens read, "
        f"{len(reply.tokens)} new{end}{rate}"
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_object(data: dict[str, Any]) -> None:
    _write(json.dumps(data, ensure_ascii=False) + "\n")

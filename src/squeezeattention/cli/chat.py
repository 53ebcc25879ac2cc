"""``squeeze chat``: several turns with a model, on one squeezed cache."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..allocators import name_or_plan
from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError, InputError, SqueezeError
from . import drawing, options
from .console import ERR, complain, notice, write
from .inputs import Prompt, load_model, read_prompts, with_question

if TYPE_CHECKING:
    from ..chat import Conversation, Reply


class _Command(NamedTuple):
    usage: str
    does: str


_COMMANDS = {
    command.usage.split()[0]: command
    for command in (
        _Command("/read FILE", "the next message is about this text"),
        _Command("/reset", "begin anew"),
        _Command("/system TEXT", "begin anew with another system prompt"),
        _Command("/plan", "how the cache is divided"),
        _Command("/exit", "leave, as Ctrl-D and Ctrl-C do"),
    )
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
    and the first error ends the command. Commands: /read FILE (the next message is
    about it), /reset, /system TEXT, /plan, /exit; a message that begins with a
    slash is written with two.
    """
    draws = drawing.draws(sample, temperature, top_p, top_k, seed)
    if raw and system is not None:
        raise ConfigError("--system is of the chat template, which --raw leaves out: choose one of them")
    spec = name_or_plan(allocator)
    kept = options.policy_of(policy)
    options.check(budget, kept, spec, None, None)

    import torch

    from ..chat import Conversation

    model, tokenizer = load_model(model_name, dtype, device)
    talk = Conversation(
        model, tokenizer, budget=budget, policy=kept, allocator=spec, system=system, raw=raw, reread=reread,
        prefill=prefill, compile=compiled,
    )  # fmt: skip
    torch.manual_seed(seed or 0)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sample, **draws}
    asked = sys.stdin.isatty()
    if asked:
        for command in _COMMANDS.values():
            ERR.print(f"{command.usage:<13} {command.does}", style="dim")
    session = _Session(talk, settings, as_json)
    for line in _typed() if asked else _piped():
        try:
            if not session.take(line):
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


class _Session:
    """A conversation, and what lines ask of it."""

    def __init__(self, talk: Conversation, settings: dict[str, Any], as_json: bool) -> None:
        self._talk, self._settings, self._as_json = talk, settings, as_json
        self._file: Prompt | None = None  # what the next message is about

    def take(self, line: str) -> bool:
        """Do what a line asks for; False to leave."""
        if not line.strip():
            return True
        if line.startswith("/") and not line.startswith("//"):
            return self._command(line)
        text = line[1:] if line.startswith("//") else line
        message = text if self._file is None else with_question(self._file, text).text
        reply = self._talk.send(message, None if self._as_json else write, **self._settings)
        self._file = None
        if self._as_json:
            turn = len(self._talk.turns) // 2
            _print_object({"message": message, **dataclasses.asdict(reply), "turn": turn})
            return True
        write("\n")
        ERR.print(_told(reply), style="dim", soft_wrap=True)
        return True

    def _command(self, line: str) -> bool:
        name, _, text = line.partition(" ")
        text, talk = text.strip(), self._talk
        if name not in _COMMANDS or (text and name not in ("/system", "/read")) or (name == "/read" and not text):
            known = ", ".join(_COMMANDS[name].usage for name in _COMMANDS)
            raise ConfigError(f"cannot do {line!r}; commands are {known} (a message that begins with a slash: //...)")
        if name == "/reset":
            talk.reset()
            self._file = None
            notice("all turns are forgotten")
        elif name == "/system" and text:
            talk.set_system(text)
            self._file = None
            notice("all turns are forgotten; the system prompt is set")
        elif name == "/system":
            notice("there is no system prompt" if talk.system is None else f"system prompt: {talk.system}")
        elif name == "/read":
            (self._file,) = read_prompts([Path(text)], None)
            notice(f"{text}: {len(self._file.text)} characters, read with the next message")
        elif name == "/plan":
            self._show_plan()
        return name != "/exit"

    def _show_plan(self) -> None:
        plan = self._talk.cache.plan
        if self._as_json:
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


def _print_object(data: dict[str, Any]) -> None:
    write(json.dumps(data, ensure_ascii=False) + "\n")

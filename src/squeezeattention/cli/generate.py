"""``squeeze generate``: text from a model with a squeezed cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..allocators import name_or_plan
from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError
from . import drawing, options
from .console import ERR, print_json, write
from .inputs import chat_tokens, check_target, load_model, read_prompts, tokenize, with_question

if TYPE_CHECKING:
    from ..chat.streaming import Timings


def generate(
    model_name: options.Model,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a file (- is stdin)."),
    ] = None,
    prompt: options.PromptText = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", metavar="TEXT", help="What is asked about the text, after it.")
    ] = None,
    budget: options.BudgetText = None,
    policy: options.Policy = DEFAULT_POLICY,
    allocator: options.AllocatorName = None,
    signal: options.SignalName = None,
    p: options.P = None,
    outliers: options.Outliers = None,
    positions: options.Positions = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", metavar="N", min=1, help="Length of the text.")
    ] = 128,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            metavar="",
            help="The prompt is a user's turn in the model's chat template, or read as it is. [--chat if it has one]",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System prompt, before the user's turn.")
    ] = None,
    sample: drawing.Sample = False,
    temperature: drawing.Temperature = None,
    top_p: drawing.TopP = None,
    top_k: drawing.TopK = None,
    seed: drawing.Seed = None,
    truncate: options.Truncate = False,
    prefill: options.Prefill = "exact",
    chunk_size: options.ChunkSize = None,
    compiled: options.Compiled = False,
    kernels: options.Kernels = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    save_plan: Annotated[
        Path | None, typer.Option("--save-plan", metavar="FILE", help="Write the prompt's plan as JSON.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text while it is made.")] = False,
    include: options.Include = None,
    as_json: options.Json = False,
) -> None:
    """Answer a prompt or go on with a text, with a squeezed cache. The prompt is -f FILE, -p TEXT, or stdin.

    Instruct models are asked through their chat template, others go on with
    the text. What they write goes to stdout; the plan, the memory and the speed
    go to stderr.
    """
    if stream and as_json:
        raise ConfigError("--stream prints text and --json prints one object: choose one of them")
    draws = drawing.draws(sample, temperature, top_p, top_k, seed)
    if system is not None and chat is False:
        raise ConfigError("--system is of the chat template, which --raw leaves out: choose one of them")
    check_target(save_plan)
    given = with_question(read_prompts([] if file is None else [file], prompt)[0], question)
    spec = name_or_plan(allocator)
    kept = options.policy_of(policy)
    options.check(budget, kept, spec, p, outliers, signal)

    import torch

    from .. import SqueezeCache
    from ..chat.streaming import Watch, decoded
    from ..chat.template import check_template, has_template

    model, tokenizer = load_model(model_name, dtype, device)
    templated = chat is not False and (has_template(tokenizer) or chat is True or system is not None)
    if templated:
        option = "--system" if system is not None else "--chat"
        check_template(tokenizer, system, wanted=option, instead=f"leave {option} out")
        tokens = chat_tokens(model, tokenizer, given, system, max_new_tokens, truncate=truncate)
    else:
        tokens = tokenize(model, tokenizer, given, max_new_tokens, truncate=truncate)
    pieces: dict[str, Any] = {} if chunk_size is None or prefill == "exact" else {"chunk_size": chunk_size}
    cache = SqueezeCache(
        model, budget, kept, spec, p, signal=signal, outliers=outliers, positions=positions, prefill=prefill,
        compile=compiled, kernels=kernels, **pieces,
    )  # fmt: skip
    torch.manual_seed(seed or 0)
    if not as_json:
        ERR.print(_reading(templated, chat, system), style="dim", soft_wrap=True)
    watch = Watch(tokenizer, write if stream else None)
    ids = torch.tensor([tokens], device=model.device)
    settings: dict[str, Any] = {"do_sample": sample, **draws}
    if chunk_size is not None:
        settings["prefill_chunk_size"] = chunk_size
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        pad_token_id=_pad_token(model, tokenizer),
        streamer=watch,
        **settings,
    )
    new = output[0, len(tokens) :].tolist()
    text = decoded(tokenizer, new)
    timings = watch.timings(len(new))
    made, memory = cache.plan, cache.memory()
    if save_plan is not None and made is not None:
        made.save(save_plan)
    if as_json:
        print_json({
            "model": model_name,
            "prompt": given.source,
            "prompt_tokens": len(tokens),
            "chat": templated,
            "system": system,
            "text": text,
            "tokens": new,
            "plan": None if made is None else made.to_dict(),
            "memory": {
                "bytes": memory.bytes,
                "index_bytes": memory.index_bytes,
                "peak_bytes": memory.peak_bytes,
                "full_bytes": memory.full_bytes,
                "saved": memory.saved,
            },
            "timings": timings._asdict(),
        })  # fmt: skip
        return
    write("\n" if stream else text + "\n")
    ERR.rule("report", style="dim")
    if made is not None:
        ERR.print(made)
    ERR.print(f"memory: {memory}", soft_wrap=True)
    ERR.print(_speed_text(len(tokens), len(new), timings), soft_wrap=True)
    if save_plan is not None:
        ERR.print(f"plan saved: {save_plan}", soft_wrap=True)


def _reading(templated: bool, chat: bool | None, system: str | None) -> str:
    """How the prompt is read, in one line."""
    if templated:
        what = "the system prompt and a user's turn" if system is not None else "a user's turn"
        return f"prompt: {what} in the model's chat template (--raw reads it as it is)"
    return f"prompt: read as it is ({'--raw' if chat is False else 'the model has no chat template'})"


def _pad_token(model: Any, tokenizer: Any) -> int | None:
    """Any: nothing is padded; without one ``generate`` remarks on it."""
    for value in (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        model.config.get_text_config().eos_token_id,
    ):
        if isinstance(value, int):
            return value
    return None


def _speed_text(prompt_tokens: int, new_tokens: int, timings: Timings) -> str:
    decode = "" if timings.tokens_per_s is None else f", then {timings.tokens_per_s:.1f} tokens/s"
    return f"speed: {prompt_tokens} tokens read in {timings.prefill_s:.2f} s, {new_tokens} new{decode}"

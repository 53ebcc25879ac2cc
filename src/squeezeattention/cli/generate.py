"""``squeeze generate``: text from a model with a squeezed cache."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..allocators import name_or_plan
from ..defaults import DEFAULT_POLICY
from ..errors import ConfigError
from . import options
from .console import ERR, print_json
from .inputs import chat_tokens, check_target, fit, load_model, read_prompts, tokenize


def generate(
    model_name: options.Model,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a file (- is stdin)."),
    ] = None,
    prompt: options.PromptText = None,
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
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's turn: use the chat template.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="With --chat: the system prompt.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="X", help="With --sample: above 1 is wilder, below 1 tamer. [1.0]"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", metavar="SHARE", help="With --sample: from the likeliest that fill it."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, metavar="N", help="With --sample: from the N likeliest tokens.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="With --sample: of the draws. [0]")] = None,
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
    """Go on with a text, with a squeezed cache. The prompt is -f FILE, -p TEXT, or stdin.

    The text goes to stdout; the plan, the memory and the speed go to stderr.
    """
    if stream and as_json:
        raise ConfigError("--stream prints text and --json prints one object: choose one of them")
    draws = _draws(sample, temperature, top_p, top_k, seed)
    if system is not None and not chat:
        raise ConfigError("--system is of --chat: give both")
    check_target(save_plan)
    given = read_prompts([] if file is None else [file], prompt)[0]
    spec = name_or_plan(allocator)
    options.check(budget, policy, spec, p, outliers, signal)

    import torch

    from .. import SqueezeCache

    model, tokenizer = load_model(model_name, dtype, device)
    if chat:
        tokens = fit(model, chat_tokens(tokenizer, given, system), given.source, max_new_tokens, truncate=truncate)
    else:
        tokens = tokenize(model, tokenizer, given, max_new_tokens, truncate=truncate)
    pieces: dict[str, Any] = {} if chunk_size is None or prefill == "exact" else {"chunk_size": chunk_size}
    cache = SqueezeCache(
        model, budget, policy, spec, p, signal=signal, outliers=outliers, positions=positions, prefill=prefill,
        compile=compiled, kernels=kernels, **pieces,
    )  # fmt: skip
    torch.manual_seed(seed or 0)
    watch = _Watch(tokenizer if stream else None)
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
    text = tokenizer.decode(new, skip_special_tokens=True)
    timings = watch.timings(len(new))
    made, memory = cache.plan, cache.memory()
    if save_plan is not None and made is not None:
        made.save(save_plan)
    if as_json:
        print_json({
            "model": model_name,
            "prompt": given.source,
            "prompt_tokens": len(tokens),
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
            "timings": timings,
        })  # fmt: skip
        return
    if not stream:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    ERR.rule("report", style="dim")
    if made is not None:
        ERR.print(made)
    ERR.print(f"memory: {memory}", soft_wrap=True)
    ERR.print(_speed_text(len(tokens), len(new), timings), soft_wrap=True)
    if save_plan is not None:
        ERR.print(f"plan saved: {save_plan}", soft_wrap=True)


def _draws(
    sample: bool, temperature: float | None, top_p: float | None, top_k: int | None, seed: int | None
) -> dict[str, float | int]:
    """How tokens are drawn, for ``generate``; :class:`ConfigError` for what cannot be or would change nothing."""
    given = {"--temperature": temperature, "--top-p": top_p, "--top-k": top_k, "--seed": seed}
    if not sample and (idle := [name for name, value in given.items() if value is not None]):
        raise ConfigError(f"{' and '.join(idle)} change nothing unless tokens are drawn: add --sample")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(f"--temperature must be a number above 0, got {temperature:g}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"--top-p must be a share above 0 and at most 1, got {top_p:g}")
    if not sample:
        return {}
    # What the model's own files say of these would be used in silence.
    drawn: dict[str, float | int] = {"temperature": 1.0 if temperature is None else temperature}
    return {**drawn, "top_p": 1.0 if top_p is None else top_p, "top_k": 0 if top_k is None else top_k}


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


def _speed_text(prompt_tokens: int, new_tokens: int, timings: dict[str, float | None]) -> str:
    rate = timings["tokens_per_s"]
    decode = "" if rate is None else f", then {rate:.1f} tokens/s"
    return f"speed: {prompt_tokens} tokens read in {timings['prefill_s']:.2f} s, {new_tokens} new{decode}"


class _Watch:
    """A streamer that keeps the time, and prints if it is given a tokenizer."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._printer: Any = None
        if tokenizer is not None:
            from transformers import TextStreamer

            self._printer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._times: list[float] = []

    def put(self, value: Any) -> None:
        """Called with the prompt, then with each token."""
        self._times.append(time.perf_counter())
        if self._printer is not None:
            self._printer.put(value)

    def end(self) -> None:
        if self._printer is not None:
            self._printer.end()

    def timings(self, new_tokens: int) -> dict[str, float | None]:
        """Seconds until the first new token, of the others, and their rate (``None`` if there are none)."""
        start, first, *_, last = [*self._times, self._times[-1]]
        decode = last - first
        rate = (new_tokens - 1) / decode if new_tokens > 1 and decode > 0 else None
        return {"prefill_s": first - start, "decode_s": decode, "tokens_per_s": rate}

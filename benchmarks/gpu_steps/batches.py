"""Throughput by batch: the paper's batches, and the largest that fit.

Nothing is generated to the end: the prompts are read, a few steps are timed, the cache is brought to its final length
(a full one by random keys and values; a squeezed one is as long then as before) and a few more are timed. Decoding
takes ``new`` times the mean of both.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.bench import measure_bandwidth
from squeezeattention.bench.graphs import forget_compiled
from squeezeattention.bench.machine import PeakMeter
from squeezeattention.device import out_of_memory

from .common import (
    BEYOND,
    Session,
    append_random,
    decode_steps,
    free,
    random_ids,
    read_prompt,
    static_cache,
    static_steps,
)

#: The published rule, as the paper has it for this model, and this library's defaults.
PUBLISHED = {"policy": "streaming_llm", "allocator": "squeeze"}
PAPER_BATCHES = (1, 32, 64, 128, 224)
#: Share of the free memory that a first guess at the largest batch fills, and what a failed guess is multiplied by.
GUESS, RETRY, TRIES = 0.92, 0.85, 3


def paper(session: Session) -> None:
    """Prompts of 512, 1,024 new tokens, at the paper's batches."""
    model, timing = _start(session)
    prompt, new = (512, 1024) if not session.tiny else (40, 8)
    for batch in PAPER_BATCHES if not session.tiny else (1, 2):
        for name, options in (
            ("full", None),
            ("published", PUBLISHED),
            ("published, h2o", {**PUBLISHED, "policy": "h2o"}),
        ):
            session.row(
                f"{batch}: {name}", lambda b=batch, o=options: _generation(session, model, o, b, prompt, new, timing),
                needs=0 if session.tiny else 5,
            )  # fmt: skip


def largest(session: Session) -> None:
    """512 + 1,024 and 16k + 1k."""
    model, timing = _start(session)
    short, long = ((512, 1024), (16384, 1024)) if not session.tiny else ((40, 8), (96, 8))
    pieces = {"prefill": "bounded", "chunk_size": 512 if not session.tiny else 32}
    shorter = {**pieces, "chunk_size": pieces["chunk_size"] // 4}
    h2o = {**PUBLISHED, "policy": "h2o"}
    for (prompt, new), variants in (
        (short, {"full": None, "published": PUBLISHED, "default": {}}),
        (long, {"full": None, "published, bounded": {**PUBLISHED, **pieces}, "h2o, bounded": {**h2o, **pieces}}),
        (short, {"published, h2o": h2o, "published, bounded": {**PUBLISHED, **shorter}}),
        (short, {"full, static, compiled": "static", "published, compiled": {**PUBLISHED, "compile": True}}),
    ):  # fmt: skip
        for name, options in variants.items():
            if session.tiny and "compiled" in name:
                continue
            session.row(
                f"{prompt} + {new}: {name}",
                lambda o=options, n=prompt, m=new: _largest(session, model, o, n, m, timing),
                needs=0 if session.tiny else 50 if "compiled" in name else 12,
            )  # fmt: skip


def _start(session: Session) -> tuple[Any, dict[str, Any]]:
    bandwidth = measure_bandwidth(session.device).bytes_per_s
    model = session.model()
    steps = 3 if session.tiny else 8
    session.note(
        bandwidth=bandwidth, layers=model.config.num_hidden_layers, dtype=str(model.dtype), share=0.2, steps=steps,
        kernels="auto", method=" ".join((__doc__ or "").split()),
    )  # fmt: skip
    return model, {"steps": steps, "warm_up": 3, "bandwidth": bandwidth}


def _generation(
    session: Session, model: Any, options: Any, batch: int, prompt: int, new: int, timing: dict[str, Any]
) -> dict[str, Any]:
    """``options``: of a SqueezeCache, ``None`` for the full one, "static" for a compiled one."""
    meter = PeakMeter(model.device)
    found: dict[str, Any] = {"batch": batch, "prompt": prompt, "new": new}
    if options == "static":
        forget_compiled(model.device)
        cache = static_cache(model, batch, prompt, new)
        last = static_steps(model, cache, batch, prompt, **{**timing, "warm_up": 5})
        forget_compiled(model.device)
        return found | {"decode_tokens_per_s": last["tokens_per_s"], "end": last, "grown_bytes": meter.read()}
    if options is None:
        cache = DynamicCache(config=model.config)
        if prompt > 4096:  # whoever has so many reads them in pieces, which the full cache is given for nothing
            append_random(cache, model, batch, prompt)
            prefill = None
        else:
            prefill = read_prompt(model, cache, random_ids(model, batch, prompt))
        first = decode_steps(model, cache, batch, prompt, **timing)
        at = cache.get_seq_length()
        append_random(cache, model, batch, max(1, prompt + new - int(at) - timing["steps"] - timing["warm_up"] - 2))
        last = decode_steps(model, cache, batch, int(cache.get_seq_length()), **timing)
    else:
        given = {"budget": 0.2, "min_tokens": 1, "kernels": "auto", **options}
        if prompt > 4096:  # a prompt as long as what is kept: reading all of it would take longer than this step has
            given["budget"] = round(0.2 * prompt)
            read = given["budget"] + BEYOND
        else:
            read = prompt
        cache = SqueezeCache(model, **given)
        prefill = read_prompt(model, cache, random_ids(model, batch, read))
        prefill = prefill if read == prompt else None
        found |= {"options": {key: str(value) for key, value in options.items()}, "read": read}
        if options.get("compile"):
            timing = {**timing, "warm_up": 5}
        first = last = decode_steps(model, cache, batch, read, **timing)
    seconds = new * (first["ms"] + last["ms"]) / 2e3
    return found | {
        "prefill_s": prefill, "decode_tokens_per_s": batch * new / seconds,
        "whole_tokens_per_s": None if prefill is None else batch * new / (prefill + seconds),
        "start": first, "end": last, "grown_bytes": meter.read(),
    }  # fmt: skip


def _largest(
    session: Session, model: Any, options: Any, prompt: int, new: int, timing: dict[str, Any]
) -> dict[str, Any]:
    """A batch from the memory that two small ones take, tried; smaller ones where that fails."""
    guess, sizes = _guess(session, model, options, prompt, new, timing)
    tried = []
    for _ in range(TRIES):
        tried.append(guess)
        try:
            found = _generation(session, model, options, guess, prompt, new, timing)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            return {**found, "tried": tried, "bytes_of": sizes}
        free(session.device)
        guess = max(1, int(RETRY * guess))
    return {"failed": "out of memory", "tried": tried, "bytes_of": sizes}


def _guess(
    session: Session, model: Any, options: Any, prompt: int, new: int, timing: dict[str, Any]
) -> tuple[int, dict[int, int]]:
    if session.device.type != "cuda":
        return 3, {}
    config = model.config
    if options == "static":  # its size is known, and no prompt is read
        width = config.head_dim or config.hidden_size // config.num_attention_heads
        each = 2 * config.num_hidden_layers * config.num_key_value_heads * width * 2 * (prompt + new + 64)
        return int(GUESS * _free(session) / each), {}
    quick = {**timing, "steps": 1, "warm_up": 1}
    sizes = {}
    for batch in (2, 6):
        small = dict(options or {}) if options is not None else None
        if small is not None:
            small.pop("compile", None)
        sizes[batch] = int(_generation(session, model, small, batch, prompt, new, quick)["grown_bytes"] or 0)
        free(session.device)
    each = max(1, (sizes[6] - sizes[2]) // 4)
    fixed = max(0, sizes[2] - 2 * each)
    return max(1, int((GUESS * _free(session) - fixed) / each)), sizes


def _free(session: Session) -> int:
    return torch.cuda.mem_get_info(session.device)[0]

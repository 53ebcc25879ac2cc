"""What all steps share: a clock, rows written as they come, caches that are filled fast, timed decode steps."""

from __future__ import annotations

import inspect
import json
import re
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from squeezeattention import SqueezeCache
from squeezeattention.bench import build, step_weight_bytes
from squeezeattention.bench.baseline import best_attention, compiled_step
from squeezeattention.bench.graphs import SkippedGraphs
from squeezeattention.bench.machine import free_memory
from squeezeattention.bench.profile import profile_step
from squeezeattention.bench.variants import cache_bytes
from squeezeattention.device import out_of_memory, synchronize
from squeezeattention.errors import CompileWarning
from squeezeattention.evaluation.environment import environment
from squeezeattention.hf.arguments import cache_name

from .turns import Turns

MISTRAL = "mistral-7b"
#: Tokens beyond the budget in the prompt that fills a cache, so that every layer is cut and full.
BEYOND = 64
#: Values that a record keeps of a long text, from its end.
MOST_TEXT = 20000


class LeftOut(Exception):
    """There is no time left for a row, or it makes no sense here."""


class Session:
    """One step's run: its rows go to ``DIR/STEP.json`` as they come, each failure with its whole traceback."""

    def __init__(
        self, step: str, out: Path, device: str, tiny: bool, limit: float, rows: str | None = None,
        turns: Turns | None = None,
    ) -> None:  # fmt: skip
        self.device, self.tiny = torch.device(device), tiny
        self.turns = turns or Turns(None)
        self._wanted = re.compile(rows or "")
        self._ends = time.monotonic() + limit
        self._path = out / f"{step}.json"
        self.record: dict[str, Any] = {
            "step": step, "device": device, "tiny": tiny, "limit_s": round(limit, 1), "environment": environment(),
            "rows": [],
        }  # fmt: skip
        self._write()

    def left(self) -> float:
        """Seconds of the step's time."""
        return self._ends - time.monotonic()

    def note(self, **values: Any) -> None:
        """Facts of the whole step."""
        self.record.update(values)
        self._write()

    def row(self, name: str, measure: Callable[[], dict[str, Any]], *, needs: float = 0.0) -> dict[str, Any] | None:
        """Add what ``measure`` gives; an exception is recorded instead. Left out where less than ``needs`` seconds are
        left."""
        if not self._wanted.search(name):
            return None
        began = time.monotonic()
        found: dict[str, Any] | None = None
        row: dict[str, Any] = {"name": name}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            if self.left() < needs:
                raise LeftOut(f"{self.left():.0f} s left, needs about {needs:.0f}")
            with self.turns.row(), torch.no_grad():  # or reading a prompt keeps everything for a backward pass
                found = measure()
            row.update(found)
        except LeftOut as reason:
            row["left_out"] = str(reason)
        except Exception as error:
            row["failed"] = "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {error}"[:300]
            row["traceback"] = traceback.format_exc()[-MOST_TEXT:]
        row["took_s"] = round(time.monotonic() - began, 2)
        self.record["rows"].append(row)
        self._write()
        free(self.device)
        return found

    def _write(self) -> None:
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(self.record, indent=1, default=str) + "\n", encoding="utf-8")
        partial.replace(self._path)

    def model(self, layers: int | None = None) -> Any:
        """Mistral 7B's shape in bf16, or its stand-in for a dry run."""
        if self.tiny:
            return build("tiny", layers=min(2, layers or 2), device=self.device)
        return build(MISTRAL, layers=layers, dtype=torch.bfloat16, device=self.device)


def free(device: torch.device) -> None:
    """Give back what a row left behind, the pools of recorded CUDA graphs included."""
    synchronize(device)
    free_memory(device)


def forward(model: Any, cache: Any, ids: torch.Tensor, start: int, call: Any = None, **more: Any) -> torch.Tensor:
    """Logits of the last token, ``[B, 1, V]``; ``ids`` int64 ``[B, T]`` at ``start`` and behind."""
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(*ids.shape)
    if ids.shape[1] > 1 and "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        more["logits_to_keep"] = 1
    given = {cache_name(model): cache}
    logits: torch.Tensor = (model if call is None else call)(
        input_ids=ids, position_ids=positions.contiguous(), use_cache=True, **given, **more
    ).logits
    return logits[:, -1:]


def random_ids(model: Any, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(device=model.device).manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (batch, length), generator=generator, device=model.device)


def read_prompt(model: Any, cache: Any, ids: torch.Tensor) -> float:
    """Seconds to read a prompt, cuts included."""
    synchronize(model.device)
    began = time.perf_counter()
    forward(model, cache, ids, 0)
    if isinstance(cache, SqueezeCache):
        cache.compact()
    synchronize(model.device)
    return time.perf_counter() - began


def append_random(cache: Any, model: Any, batch: int, tokens: int) -> None:
    """``tokens`` more in every layer of a cache of transformers, random ones."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (batch, config.num_key_value_heads, tokens, width)
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, dtype=model.dtype, device=model.device) for _ in range(2)), layer)


def full_cache(model: Any, batch: int, prompt: int) -> Any:
    """A DynamicCache that holds so many random tokens."""
    cache = DynamicCache(config=model.config)
    append_random(cache, model, batch, prompt)
    return cache


def static_cache(model: Any, batch: int, prompt: int, new: int) -> Any:
    """The same as a StaticCache with room for ``new`` more, in multiples of 64 columns."""
    cache = StaticCache(config=model.config, max_cache_len=-(-(prompt + new) // 64) * 64)
    append_random(cache, model, batch, prompt)
    return cache


def squeezed_cache(model: Any, batch: int, tokens: int | list[Any], **options: Any) -> Any:
    """A SqueezeCache of ``tokens`` a layer (a list: its budgets) that is full: it has read a prompt a little longer."""
    if isinstance(tokens, int):
        longest, budget = tokens, {"budget": tokens, "allocator": "uniform"}
    else:
        longest, budget = max(max(one) if isinstance(one, list) else one for one in tokens), {"allocator": tokens}
    cache = SqueezeCache(model, **budget, **options)
    read_prompt(model, cache, random_ids(model, batch, longest + BEYOND))
    return cache


@dataclass(frozen=True)
class Steps:
    """Decode steps of a cache, greedy, all rows at once."""

    ms: float
    """Median time from one step's end to the next one's, on the device's clock."""
    host_ms: float
    """The host's time to issue one, on average."""
    warm_up_s: float
    kv_bytes: int
    weight_bytes: int
    bound_ms: float | None
    """What reading weights and cache once takes at the measured bandwidth."""
    of_bound: float | None
    """Its share of ``ms``."""
    tokens_per_s: float
    attention: tuple[str, ...]
    launches: int
    graph_replays: int
    waits: int
    synchronisations: int
    """As CUDA's debug mode counts them."""
    operators: int
    device_ms: float | None
    """Kernels of one step, added up."""
    heaviest: list[tuple[str, int, float]]
    """Those that took longest: names, how often, milliseconds of all together."""
    graphs_skipped: int
    skip_reasons: list[str]
    fallbacks: list[str]
    """Why steps that were to be compiled were not."""
    peak_gib: float | None


def decode_steps(
    model: Any, cache: Any, batch: int, start: int, *, steps: int, warm_up: int, bandwidth: float | None,
    call: Any = None, within: AbstractContextManager[Any] | None = None, turns: Turns | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time ``steps`` steps from position ``start`` on, alone on the device if there are ``turns``; ``call`` stands in
    for the model. As :class:`Steps`."""
    device = model.device
    on_gpu = device.type == "cuda"
    token = torch.zeros(batch, 1, dtype=torch.long, device=device)
    at = start
    skips = SkippedGraphs()

    def step() -> None:
        nonlocal token, at
        token = forward(model, cache, token, at, call).argmax(-1)
        at += 1

    with within or nullcontext(), skips, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        began = time.perf_counter()
        for _ in range(warm_up):
            step()
        synchronize(device)
        warmed = time.perf_counter() - began
        with (turns or Turns(None)).alone():
            marks = [mark(on_gpu)]
            began = time.perf_counter()
            for _ in range(steps):
                step()
                marks.append(mark(on_gpu))
            host = (time.perf_counter() - began) / steps
            synchronize(device)
        seconds = statistics.median(between(*pair) for pair in pairwise(marks))
        seen = profile_step(step, device)
        synchronisations = _synchronisations(step) if on_gpu else 0
    held, _ = cache_bytes(cache)
    weights = step_weight_bytes(model, batch)
    bound = None if bandwidth is None else (held + weights) / bandwidth
    return asdict(Steps(
        ms=1e3 * seconds, host_ms=1e3 * host, warm_up_s=warmed, kv_bytes=held, weight_bytes=weights,
        bound_ms=None if bound is None else 1e3 * bound, of_bound=None if bound is None else bound / seconds,
        tokens_per_s=batch / seconds, attention=seen.attention, launches=seen.launches,
        graph_replays=seen.graph_replays, waits=seen.waits, synchronisations=synchronisations,
        operators=seen.operators, device_ms=None if seen.device_s is None else 1e3 * seen.device_s,
        heaviest=[(name, times, round(1e3 * spent, 4)) for name, times, spent in seen.heaviest],
        graphs_skipped=skips.count if on_gpu else 0, skip_reasons=skips.reasons,
        fallbacks=[str(one.message) for one in told if issubclass(one.category, CompileWarning)],
        peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None,
    ))  # fmt: skip


def static_steps(
    model: Any, cache: Any, batch: int, start: int, *, backend: str = "inductor", **options: Any
) -> dict[str, Any]:
    """Of a StaticCache: the whole model compiled, with CUDA graphs on a GPU, query heads packed."""
    call = compiled_step(model, backend, dynamic=False)
    return decode_steps(model, cache, batch, start, call=call, within=best_attention(model), **options)


def _synchronisations(step: Callable[[], None]) -> int:
    """How often the host waits for the device in one step."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


def timed(device: torch.device, call: Callable[[], Any], rounds: int = 10) -> float:
    """Milliseconds, median."""
    for _ in range(3):
        call()
    synchronize(device)
    on_gpu = device.type == "cuda"
    marks = [mark(on_gpu)]
    for _ in range(rounds):
        call()
        marks.append(mark(on_gpu))
    synchronize(device)
    return 1e3 * statistics.median(between(*pair) for pair in pairwise(marks))


def mark(on_gpu: bool) -> Any:
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(one: Any, other: Any) -> float:
    return other - one if isinstance(one, float) else one.elapsed_time(other) / 1e3

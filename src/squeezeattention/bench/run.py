"""One measurement: a prompt is read, tokens are decoded."""

from __future__ import annotations

import inspect
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import SqueezeCache
from ..device import out_of_memory
from ..hf.arguments import cache_name
from .machine import PeakMeter, free_memory, memory_limit, synchronize
from .variants import Variant, cache_bytes
from .weights import step_weight_bytes

#: Decode steps before the clock starts: compilers and allocators do their work in the first ones.
WARM_UP = 3


@dataclass(frozen=True)
class Workload:
    """``batch`` prompts of ``prompt`` tokens, ``new`` tokens each."""

    batch: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Run:
    """What was measured of a variant; times in seconds, ``None`` where memory ran out."""

    variant: str
    batch: int
    prompt: int
    new: int
    failed: str | None = None
    prefill_s: float | None = None
    step_s: float | None = None
    """Median decode step, after the first ones."""
    warm_up_s: float | None = None
    """The first steps together, compilation included."""
    kv_bytes: int | None = None
    """Keys and values at the end, all sequences."""
    kv_peak_bytes: int | None = None
    grown_bytes: int | None = None
    """Most that the process (a GPU: its memory) grew by, activations included."""
    weight_bytes: int | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Of decoding."""
        return None if self.step_s is None else self.batch / self.step_s

    @property
    def whole_tokens_per_s(self) -> float | None:
        """New tokens a second, the prompt's time included and warming up not."""
        if self.step_s is None or self.prefill_s is None:
            return None
        return self.batch * self.new / (self.prefill_s + self.new * self.step_s)

    def bytes_per_s(self) -> float | None:
        """Weights and cache that a step has to read, by its time."""
        if self.step_s is None or self.weight_bytes is None or self.kv_bytes is None:
            return None
        return (self.weight_bytes + self.kv_bytes) / self.step_s

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, rates included."""
        return {
            **asdict(self), "tokens_per_s": self.tokens_per_s, "whole_tokens_per_s": self.whole_tokens_per_s,
            "bytes_per_s": self.bytes_per_s(),
        }  # fmt: skip


@torch.no_grad()
def measure(model: Any, variant: Variant, load: Workload, *, seed: int = 0, memory: int | None = None) -> Run:
    """Read random prompts with an empty cache and go on greedily.

    Memory that runs out is a result, not an error; ``memory`` as in :func:`memory_limit`.
    """
    where = (variant.name, load.batch, load.prompt, load.new)
    device = model.device
    try:
        with memory_limit(device, memory):
            return _measure(model, variant, load, seed, device)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        failed = Run(*where, failed="out of memory")
    finally:
        free_memory(device)
    return failed


def _measure(model: Any, variant: Variant, load: Workload, seed: int, device: torch.device) -> Run:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (load.batch, load.prompt), generator=generator).to(device)
    meter = PeakMeter(device)
    cache = variant.make_cache(model, load.prompt + load.new + WARM_UP)
    synchronize(device)
    began = time.perf_counter()
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
    given = {cache_name(model): cache}
    logits = model(input_ids=ids, use_cache=True, **given, **last).logits
    if isinstance(cache, SqueezeCache):
        cache.compact()
    synchronize(device)
    prefill = time.perf_counter() - began
    step, times = variant.make_step(model), []
    token = logits[:, -1:].argmax(-1)
    for index in range(WARM_UP + load.new):
        position = torch.full((load.batch, 1), load.prompt + index, device=device)
        began = time.perf_counter()
        logits = step(input_ids=token, position_ids=position, use_cache=True, **given).logits
        token = logits[:, -1:].argmax(-1)
        synchronize(device)
        times.append(time.perf_counter() - began)
    held, peak = cache_bytes(cache)
    return Run(
        variant.name, load.batch, load.prompt, load.new,
        prefill_s=prefill, step_s=statistics.median(times[WARM_UP:]), warm_up_s=sum(times[:WARM_UP]),
        kv_bytes=held, kv_peak_bytes=peak, grown_bytes=meter.read(),
        weight_bytes=step_weight_bytes(model, load.batch),
    )  # fmt: skip

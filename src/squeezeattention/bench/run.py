"""One measurement: a prompt is read, tokens are decoded."""

from __future__ import annotations

import inspect
import statistics
import time
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import SqueezeCache
from ..device import out_of_memory, synchronize
from ..hf.arguments import cache_name
from .graphs import SkippedGraphs, forget_compiled
from .machine import PeakMeter, free_memory, memory_limit
from .profile import profile_step
from .variants import Variant, cache_bytes
from .weights import step_weight_bytes

#: Decode steps before the clock starts: compilers and allocators do their work in the first ones.
WARM_UP = 3
#: And one after it stopped, which is profiled.
PROFILED = 1


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
    attention: tuple[str, ...] | None = None
    """Attention kernels of a step, as :class:`StepProfile` has them; empty: plain matrix products."""
    launches: int | None = None
    """Kernels that the host launched one by one in a step; 0 on a CPU."""
    graph_replays: int | None = None
    """CUDA graphs that it launched in a step."""
    graphs_skipped: int | None = None
    """Compiled graphs that run without CUDA graphs, on a GPU."""
    skip_reasons: tuple[str, ...] = ()
    compiled: bool = False
    on_gpu: bool = False

    @property
    def complaint(self) -> str | None:
        """Why a compiled run on a GPU does not show what its cache can do: CUDA graphs were not seen to run."""
        if not self.compiled or not self.on_gpu or self.failed is not None:
            return None
        if self.graph_replays and not self.graphs_skipped:
            return None
        what = f"{self.graph_replays} CUDA graphs were replayed in a step, {self.graphs_skipped} graphs run without"
        return f"{what}: {'; '.join(self.skip_reasons) or 'no reason was given'}"

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

    def of_bound(self, bandwidth: float) -> float | None:
        """The time that reading weights and cache takes at ``bandwidth`` bytes a second, as a share of a step's."""
        reached = self.bytes_per_s()
        return None if reached is None else reached / bandwidth

    def to_dict(self, bandwidth: float | None = None) -> dict[str, Any]:
        """Plain JSON values, rates included; with a ``bandwidth`` the share of the bound as well."""
        found = {
            **asdict(self), "tokens_per_s": self.tokens_per_s, "whole_tokens_per_s": self.whole_tokens_per_s,
            "bytes_per_s": self.bytes_per_s(), "complaint": self.complaint,
        }  # fmt: skip
        return found if bandwidth is None else {**found, "of_bound": self.of_bound(bandwidth)}


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
    if variant.compiled:
        _compile_anew(model, load)
    cache = variant.make_cache(model, load.prompt + load.new + WARM_UP + PROFILED)
    synchronize(device)
    began = time.perf_counter()
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
    given = {cache_name(model): cache}
    logits = model(input_ids=ids, use_cache=True, **given, **last).logits
    if isinstance(cache, SqueezeCache):
        cache.compact()
    synchronize(device)
    prefill = time.perf_counter() - began
    times = []
    token = logits[:, -1:].argmax(-1)
    with variant.stepping(model) as step, SkippedGraphs() as skipped:
        for index in range(WARM_UP + load.new):
            position = torch.full((load.batch, 1), load.prompt + index, device=device)
            began = time.perf_counter()
            logits = step(input_ids=token, position_ids=position, use_cache=True, **given).logits
            token = logits[:, -1:].argmax(-1)
            synchronize(device)
            times.append(time.perf_counter() - began)
        held, peak = cache_bytes(cache)
        grown = meter.read()
        seen = profile_step(lambda: step(input_ids=token, position_ids=position + 1, use_cache=True, **given), device)
    return Run(
        variant.name, load.batch, load.prompt, load.new,
        prefill_s=prefill, step_s=statistics.median(times[WARM_UP:]), warm_up_s=sum(times[:WARM_UP]),
        kv_bytes=held, kv_peak_bytes=peak, grown_bytes=grown,
        weight_bytes=step_weight_bytes(model, load.batch),
        attention=seen.attention, launches=seen.launches, graph_replays=seen.graph_replays,
        graphs_skipped=skipped.count if device.type == "cuda" else 0, skip_reasons=tuple(skipped.reasons),
        compiled=variant.compiled, on_gpu=device.type == "cuda",
    )  # fmt: skip


_COMPILED_FOR: weakref.WeakKeyDictionary[Any, Workload] = weakref.WeakKeyDictionary()


def _compile_anew(model: Any, load: Workload) -> None:
    """Forget what was compiled for another workload: each is compiled for its own sizes, as the first of its process.

    Otherwise torch would compile for sizes that vary from the second batch on, and keep every batch's CUDA graphs.
    """
    if _COMPILED_FOR.get(model) == load:
        return
    forget_compiled(model.device)
    _COMPILED_FOR[model] = load

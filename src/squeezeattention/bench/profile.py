"""What one step does: the attention kernels it calls, launches, CUDA graphs, synchronisations; from a profile of it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..device import synchronize

#: torch's own attention, the operators that compute: ``aten::scaled_dot_product_attention`` only chooses among them.
_ATTENTION_OPERATOR = re.compile(r"^aten::(_scaled_dot_product_\w+)$")
#: Attention among the kernels of a device, whose names say it even where a graph hides the operators: flash, CUTLASS's
#: (memory-efficient) and cuDNN's, inductor's flex attention, and this library's (kernels/).
_ATTENTION_KERNELS = {
    "flash": re.compile(r"flash_(fwd|attn)|pytorch_flash", re.I),
    "efficient (CUTLASS)": re.compile(r"fmha_cutlass|AttentionKernel", re.I),
    "cuDNN": re.compile(r"cudnn.*(sdpa|attention|fmha|fprop)", re.I),
    "flex": re.compile(r"flex_(attention|decoding)", re.I),
    "squeezeattention": re.compile(r"^_(partial|combine|causal_sums|row_totals|column_sums)\b"),
}
#: What the profiler calls the host's calls that start a kernel, or a graph of them.
_LAUNCH = re.compile(r"^(cuda|cu)LaunchKernel(Ex)?C?\w*$")
_REPLAY = re.compile(r"^(cuda|cu)GraphLaunch\w*$")
#: Reading a number on the host, and how many elements there are, waits for the device.
_WAITS = frozenset({"aten::_local_scalar_dense", "aten::nonzero"})
#: Kernels that are listed, and characters of their names.
_LISTED, _NAME = 12, 120
#: Ranges that torch.compile and the profiler draw around kernels; they are none.
_RANGES = ("Torch-Compiled Region", "## Call", "ProfilerStep")


@dataclass(frozen=True)
class StepProfile:
    """One step, as it was seen."""

    attention: tuple[str, ...]
    """Kernels of attention: torch's operators, then the device's kernels by their kind. Empty: no attention operator
    was called, the products of a step are plain matrix products."""
    launches: int
    """Kernels that the host launched one by one; 0 on a CPU."""
    graph_replays: int
    """CUDA graphs that it launched."""
    waits: int
    """Reads of a value by the host, each of which waits for the device."""
    device_s: float | None
    """Seconds that kernels ran, added up; ``None`` on a CPU."""
    operators: int
    """Operators that were called by the host, those that other operators call left out."""
    heaviest: tuple[tuple[str, int, float], ...] = ()
    """The device's kernels that took longest, all runs of one together: names, how often, seconds."""


def profile_step(step: Callable[[], object], device: torch.device) -> StepProfile:
    """Run ``step`` once under torch's profiler, until the device is done. Compile and warm up before."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with _without_traces(), profile(activities=activities) as seen:
        step()
        synchronize(device)
    return read_profile(seen.events() or (), device)


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """Keep the lines off the screen that some builds of the profiler write for each start and end (``USDT:...``); what
    else is written to standard error inside comes at the end."""
    try:
        screen = os.dup(2)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            caught.seek(0)
            for line in caught:
                if not line.startswith(b"USDT:"):
                    os.write(2, line)


def read_profile(events: Iterable[Any], device: torch.device) -> StepProfile:
    """The same from a profile's events."""
    on_host, on_device = [], []
    for event in events:
        if event.device_type == DeviceType.CPU:
            on_host.append(event)
        elif not event.name.startswith(_RANGES):
            on_device.append(event)
    names = [event.name for event in on_host]
    return StepProfile(
        attention=attention_kernels(names, [event.name for event in on_device]),
        launches=sum(_LAUNCH.match(name) is not None for name in names),
        graph_replays=sum(_REPLAY.match(name) is not None for name in names),
        waits=sum(name in _WAITS for name in names),
        device_s=sum(event.time_range.elapsed_us() for event in on_device) / 1e6 if device.type == "cuda" else None,
        operators=sum(event.name.startswith("aten::") and not _inner(event) for event in on_host),
        heaviest=_heaviest(on_device),
    )


def _heaviest(events: Iterable[Any]) -> tuple[tuple[str, int, float], ...]:
    found: dict[str, tuple[int, float]] = {}
    for event in events:
        count, seconds = found.get(event.name, (0, 0.0))
        found[event.name] = (count + 1, seconds + event.time_range.elapsed_us() / 1e6)
    longest = sorted(found.items(), key=lambda one: -one[1][1])[:_LISTED]
    return tuple((name[:_NAME], *spent) for name, spent in longest)


def attention_kernels(operators: Iterable[str], kernels: Iterable[str]) -> tuple[str, ...]:
    """Those among the names of operators and of a device's kernels that compute attention, each once."""
    found = [match[1].removeprefix("_scaled_dot_product_") for name in operators
             if (match := _ATTENTION_OPERATOR.match(name)) is not None]  # fmt: skip
    found += [f"{kind} kernel" for name in kernels for kind, known in _ATTENTION_KERNELS.items() if known.search(name)]
    return tuple(dict.fromkeys(found))


def _inner(event: Any) -> bool:
    return event.cpu_parent is not None and event.cpu_parent.name.startswith("aten::")

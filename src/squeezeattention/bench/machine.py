"""What the hardware gives: bandwidth, and memory up to a limit that is an error and not a killed process."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..device import synchronize
from ..errors import ConfigError

_BUFFER = 256 * 2**20
#: On a GPU 256 MiB take a tenth of a millisecond, of which launching and waiting are a good part.
_BUFFER_OF_GPU = 2 * 2**30


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second that a plain sum over a large buffer reads."""

    bytes_per_s: float
    device: str
    threads: int


def measure_bandwidth(device: torch.device, *, rounds: int = 7) -> Bandwidth:
    """Read a buffer that no cache holds (256 MiB, on a GPU 2 GiB, fp32) from end to end, several times; the median
    counts."""
    size = _BUFFER_OF_GPU if device.type == "cuda" else _BUFFER
    buffer = torch.ones(size // 4, device=device)
    times = []
    for _ in range(rounds + 1):
        synchronize(device)
        began = time.perf_counter()
        buffer.sum()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return Bandwidth(size / statistics.median(times[1:]), str(device), torch.get_num_threads())


def free_memory(device: torch.device) -> None:
    """Give back what a measurement left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def memory_limit(device: torch.device, limit: int | None) -> Iterator[None]:
    """Inside, an allocation beyond ``limit`` bytes more than now is an error.

    On a CPU ``None`` stands for nine tenths of the memory that is available: without any limit the system would end
    the process. On a GPU it stands for the GPU's own.
    """
    if device.type == "cuda":
        if limit is None:
            yield
            return
        whole = torch.cuda.get_device_properties(device).total_memory
        share = min(1.0, (torch.cuda.memory_reserved(device) + limit) / whole)
        torch.cuda.set_per_process_memory_fraction(share, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    try:
        import resource
    except ImportError:  # Windows
        if limit is not None:
            raise ConfigError("a limit of memory needs a system with setrlimit, or a GPU") from None
        yield
        return
    if limit is None:
        available = _available()
        limit = None if available is None else int(0.9 * available)
    now = _mapped()
    if limit is None or now is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = now + limit if before[1] == resource.RLIM_INFINITY else min(now + limit, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _available() -> int | None:
    """Bytes that can still be had, on Linux; a container's limit counts."""
    found = _field(Path("/proc/meminfo"), "MemAvailable:")
    if found is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(found, max(0, most - used))
    return found


def _mapped() -> int | None:
    """Bytes of this process's own memory, touched or not, on Linux."""
    return _field(Path("/proc/self/status"), "VmData:")


def _field(path: Path, name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


class PeakMeter:
    """Most memory that was held since the meter was made, in bytes more than then: of the GPU, or of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._before = _field(Path("/proc/self/status"), "VmRSS:")

    def read(self) -> int | None:
        """Bytes, or ``None`` where the system does not tell."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        now = _field(Path("/proc/self/status"), "VmHWM:")
        return None if now is None else max(0, now - self._before)

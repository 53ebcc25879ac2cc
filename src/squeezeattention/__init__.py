"""SqueezeAttention: a KV cache managed in two dimensions, layers and tokens (ICLR 2025, arXiv 2404.04793)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .errors import SqueezeError

if TYPE_CHECKING:
    from .allocators import ALLOCATORS, Allocator
    from .cache.cache import SqueezeCache
    from .cache.memory import LayerMemory, MemoryReport
    from .calibration import Calibration, calibrate
    from .chat import Conversation
    from .embedded import load_embedded
    from .gguf_models import load_gguf
    from .hf.handle import Handle, squeeze
    from .plan import Budget, BudgetPlan
    from .policies import POLICIES, EvictionPolicy
    from .signals import SIGNALS, Signal
    from .smollm2 import load_smollm2

try:
    __version__ = version("squeezeattention")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

#: Where each name is made. They are imported when they are first used: torch and transformers take seconds, which
#: ``squeeze --help`` need not wait for.
_HOMES = {
    "ALLOCATORS": ".allocators",
    "POLICIES": ".policies",
    "SIGNALS": ".signals",
    "Allocator": ".allocators",
    "Budget": ".plan",
    "BudgetPlan": ".plan",
    "Calibration": ".calibration",
    "Conversation": ".chat",
    "EvictionPolicy": ".policies",
    "Handle": ".hf.handle",
    "LayerMemory": ".cache.memory",
    "MemoryReport": ".cache.memory",
    "Signal": ".signals",
    "SqueezeCache": ".cache.cache",
    "calibrate": ".calibration",
    "load_embedded": ".embedded",
    "load_gguf": ".gguf_models",
    "load_smollm2": ".smollm2",
    "squeeze": ".hf.handle",
}

__all__ = [
    "ALLOCATORS",
    "POLICIES",
    "SIGNALS",
    "Allocator",
    "Budget",
    "BudgetPlan",
    "Calibration",
    "Conversation",
    "EvictionPolicy",
    "Handle",
    "LayerMemory",
    "MemoryReport",
    "Signal",
    "SqueezeCache",
    "SqueezeError",
    "calibrate",
    "load_embedded",
    "load_gguf",
    "load_smollm2",
    "squeeze",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home, __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""SqueezeAttention: a KV cache managed in two dimensions, layers and tokens (ICLR 2025, arXiv 2404.04793)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from .cache.cache import SqueezeCache
from .cache.memory import LayerMemory, MemoryReport
from .embedded import load_embedded
from .errors import SqueezeError
from .hf.handle import Handle, squeeze
from .plan import Budget, BudgetPlan
from .policies import POLICIES, EvictionPolicy

try:
    __version__ = version("squeezeattention")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = [
    "POLICIES",
    "Budget",
    "BudgetPlan",
    "EvictionPolicy",
    "Handle",
    "LayerMemory",
    "MemoryReport",
    "SqueezeCache",
    "SqueezeError",
    "load_embedded",
    "squeeze",
]

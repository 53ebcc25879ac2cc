"""What is compared: the full cache, dynamic or static, and squeezed ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import DynamicCache, StaticCache

from .. import SqueezeCache
from ..allocators import Allocator
from ..plan import BudgetPlan
from ..policies import POLICIES
from .baseline import best_attention, compiled_step

FULL = "full"


@dataclass(frozen=True)
class Variant:
    """A way to hold the cache. ``policy`` is ``None`` for a full cache."""

    name: str
    policy: str | None = None
    allocator: str | BudgetPlan | Allocator = "uniform"
    budget: str = "0.2"
    compiled: bool = False
    prefill: str = "exact"
    chunk_size: int = 512
    kernels: str = "auto"

    def make_cache(self, model: Any, total: int) -> Any:
        """An empty cache for ``total`` tokens."""
        if self.policy is not None:
            return SqueezeCache(
                model, self.budget, self.policy, self.allocator, compile=self.compiled, prefill=self.prefill,
                chunk_size=self.chunk_size, kernels=self.kernels, min_tokens=1,
            )  # fmt: skip
        if self.compiled:
            return StaticCache(config=model.config, max_cache_len=total)
        return DynamicCache(config=model.config)

    @contextlib.contextmanager
    def stepping(self, model: Any) -> Iterator[Any]:
        """What is called for decode steps inside. Compiled, a full cache attends as fast as torch lets it."""
        if self.policy is not None or not self.compiled:
            yield model
            return
        with best_attention(model):
            yield compiled_step(model)


def variants_of(
    policies: Sequence[str],
    allocators: Sequence[str],
    *,
    budget: str = "0.2",
    compiled: bool = False,
    prefill: str = "exact",
    chunk_size: int = 512,
    kernels: str = "auto",
) -> list[Variant]:
    """The full cache, and each policy with each allocator (none: "uniform" and its own); with ``compiled`` each of them
    compiled as well."""
    found = [Variant(FULL)]
    found += [
        Variant(f"{policy}, {allocator}", policy, allocator, budget, False, prefill, chunk_size, kernels)
        for policy in policies
        for allocator in allocators or ("uniform", POLICIES.create(policy).allocator)
    ]
    if not compiled:
        return found
    both = []
    for one in found:
        name = "full, static" if one.policy is None else one.name
        both += [one, replace(one, name=f"{name}, compiled", compiled=True)]
    return both


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Bytes of keys and values that a cache holds now, and the most that it held; measured from its storages."""
    if isinstance(cache, SqueezeCache):
        memory = cache.memory()
        return memory.bytes, memory.peak_bytes
    storages = {}
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    held = sum(storages.values())
    return held, held

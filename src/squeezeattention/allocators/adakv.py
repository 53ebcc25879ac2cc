"""The same for every layer, shared among its KV heads by the policy's own scores (Ada-KV, arXiv 2407.11550)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import Allocation, HeadAllocator


@dataclass(frozen=True)
class AdaKV(HeadAllocator):
    """Each KV head gets as many tokens as it has among the best of its layer; a fifth of an even share at least.

    For any policy with scores: they are compared within a layer only.
    """

    name: ClassVar[str] = "adakv"
    signal: ClassVar[str] = "layer_scores"

    def allocate_heads(self, signal_values: Sequence[Sequence[float]], n_layers: int) -> Allocation:
        return Allocation((1.0,) * n_layers, (1,) * n_layers, heads=tuple(map(_even_mean, signal_values)))


def _even_mean(values: Sequence[float]) -> tuple[float, ...]:
    """Shares of one layer's heads, 1.0 on average."""
    shares = [max(0.0, 1.0 - value) for value in values]
    total = sum(shares)
    return tuple(share * len(shares) / total if total else 1.0 for share in shares)

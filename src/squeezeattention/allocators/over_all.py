"""Budgets as the policy's own scores have them, ranked over all layers and KV heads (KVzip, Layer-DefensiveKV)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import Allocation, HeadAllocator


@dataclass(frozen=True)
class OverAll(HeadAllocator):
    """Each KV head gets as many tokens as it has among the best of all layers and heads, see
    :class:`~squeezeattention.signals.TopScores`.

    For policies with scores that compare across heads: "echo" and "kvzip".
    """

    name: ClassVar[str] = "global"
    signal: ClassVar[str] = "top_scores"

    def allocate_heads(self, signal_values: Sequence[Sequence[float]], n_layers: int) -> Allocation:
        shares = tuple(tuple(max(0.0, 1.0 - value) for value in layer) for layer in signal_values)
        return Allocation((1.0,) * n_layers, (1,) * n_layers, heads=shares)

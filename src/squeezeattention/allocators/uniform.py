"""The baseline: the same budget in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import Allocation, Allocator


@dataclass(frozen=True)
class Uniform(Allocator):
    """Equal shares, as in every eviction policy without layer budgets."""

    name: ClassVar[str] = "uniform"
    needs_signal: ClassVar[bool] = False

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        return Allocation(shares=(1.0,) * n_layers, groups=(1,) * n_layers)

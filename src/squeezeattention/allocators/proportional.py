"""Budgets in proportion to a power of what each layer needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..plan.budget import is_real
from .base import Allocation, Allocator, check_signal_values


@dataclass(frozen=True)
class Proportional(Allocator):
    """Shares proportional to ``need ** power``, need = 1 - signal, water-filled between floors and caps.

    Continuous, where the paper has two levels: a layer that needs everything gets everything, up to its cap.
    Every layer keeps ``floor`` tokens (sinks and a short window for those that read locally) as far as the
    average budget allows. If no layer needs anything, all get the same. ``hedge`` is the share of the cache that is
    divided evenly whatever the needs: what it costs the layers that stand out, it saves the others.
    """

    name: ClassVar[str] = "proportional"
    needs_signal: ClassVar[bool] = True
    power: float = 1.0
    floor: int = 1
    hedge: float = 0.0

    def __post_init__(self) -> None:
        if not is_real(self.power) or not 0 < self.power < math.inf:
            raise ConfigError(f"power must be a finite number above 0, got {self.power!r}")
        if isinstance(self.floor, bool) or not isinstance(self.floor, int) or self.floor < 1:
            raise ConfigError(f"floor must be a whole number of at least 1 token, got {self.floor!r}")
        if not is_real(self.hedge) or not 0 <= self.hedge <= 1:
            raise ConfigError(f"hedge must be a share of the cache in [0, 1], got {self.hedge!r}")

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        values = check_signal_values(self.name, signal_values, n_layers)
        needs = [max(0.0, 1.0 - value) for value in values]
        most = max(needs)
        if most <= 0:
            return Allocation(
                (1.0,) * n_layers, (1,) * n_layers, ("no layer needs more than another: uniform budgets",)
            )
        raised = [(need / most) ** self.power for need in needs]
        mean = sum(raised) / n_layers
        shares = tuple(self.hedge + (1 - self.hedge) * share / mean for share in raised)
        return Allocation(shares, (1,) * n_layers, floor=self.floor)

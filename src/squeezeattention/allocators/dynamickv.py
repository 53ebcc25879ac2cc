"""DynamicKV's budgets: as many tokens as a layer has among the best of all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import ConfigError
from ..plan.budget import is_real
from .base import Allocation
from .proportional import Proportional


@dataclass(frozen=True)
class DynamicKV(Proportional):
    """DynamicKV (arXiv 2412.14838): budgets in proportion to a layer's tokens in one ranking over all layers.

    No layer gets more than ``r_max`` times the average (10 in the authors' code); what is cut off goes to the
    others in proportion. The window of the newest 32 tokens is a floor, as far as a quarter of the average
    budget pays for it; in the paper it comes on top. Only the budgets: which tokens stay is the policy's.
    """

    name: ClassVar[str] = "dynamickv"
    signal: ClassVar[str] = "top_tokens"
    floor: int = 32
    r_max: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.r_max) or not 1 <= self.r_max < math.inf:
            raise ConfigError(f"r_max must be a finite number of at least 1, got {self.r_max!r}")

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        found = super().allocate(signal_values, n_layers)
        return replace(found, shares=capped(found.shares, self.r_max))


def capped(shares: Sequence[float], most: float) -> tuple[float, ...]:
    """Shares of mean 1, none above ``most`` >= 1: the surplus goes to the others in proportion.

    Layers without a share get one, evenly, only when all others are at ``most``.
    """
    out = list(shares)
    while any(share > most for share in out):
        full = [share >= most for share in out]
        rest = max(0.0, len(out) - most * sum(full))
        held = math.fsum(share for share, at in zip(out, full, strict=True) if not at)
        out = [
            most if at else share * (rest / held) if held else rest / full.count(False)
            for share, at in zip(out, full, strict=True)
        ]
    return tuple(out)

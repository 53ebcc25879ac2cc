"""ZigZagKV's budgets: a guaranteed part, and the rest by how many tokens a layer's attention needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import ConfigError
from ..plan.budget import is_real
from .base import Allocation
from .proportional import Proportional


@dataclass(frozen=True)
class ZigZag(Proportional):
    """ZigZagKV (arXiv 2412.09036): every layer keeps ``bound`` of the average, the rest goes by its uncertainty.

    Uncertainty is the least number of tokens that hold 90 % of the attention, mean over heads, as a part of
    all layers' (the signal ``span``): share = bound + (1 - bound) * need / mean need. The signal counts
    relative to the tokens visible, over queries of the whole prompt. ``bound`` 0.2 is this project's choice.
    Only the budgets: the paper's choice of tokens is not part of this.
    """

    name: ClassVar[str] = "zigzag"
    signal: ClassVar[str] = "span"
    bound: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.bound) or not 0 <= self.bound <= 1:
            raise ConfigError(f"bound must be a share of the average budget in [0, 1], got {self.bound!r}")

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        found = super().allocate(signal_values, n_layers)
        return replace(found, shares=tuple(self.bound + (1 - self.bound) * share for share in found.shares))

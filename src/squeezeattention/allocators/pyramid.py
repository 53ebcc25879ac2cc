"""PyramidKV's budgets: decreasing with depth, the same for every prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..plan.budget import is_real
from .base import Allocation, Allocator


@dataclass(frozen=True)
class Pyramid(Allocator):
    """PyramidKV (arXiv 2406.02069): an arithmetic decrease from the first to the last layer.

    With b the average budget, the last layer gets b / ``beta``, the first 2 b - b / ``beta`` (``beta`` is 20
    in the paper, 1 is uniform). Only the budgets: the paper's choice of tokens is not part of this.
    """

    name: ClassVar[str] = "pyramid"
    needs_signal: ClassVar[bool] = False
    beta: float = 20

    def __post_init__(self) -> None:
        if not is_real(self.beta) or not 1 <= self.beta < math.inf:
            raise ConfigError(f"beta must be a finite number of at least 1 (20 in the paper), got {self.beta!r}")

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        slope = (1 - 1 / self.beta) / max(1, n_layers - 1)
        # mirrored around 1, so that the mean is 1
        shares = tuple(1 + slope * (n_layers - 1 - 2 * layer) for layer in range(n_layers))
        return Allocation(shares=shares, groups=(1,) * n_layers)

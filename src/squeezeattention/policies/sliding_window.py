"""Sliding window: the newest tokens."""

from __future__ import annotations

import torch

from .base import EvictionPolicy, Tokens


class SlidingWindow(EvictionPolicy):
    """Keeps the last ``budget`` tokens."""

    name = "sliding_window"
    nested = True

    @property
    def ring(self) -> int:
        return 0

    def priority(self, tokens: Tokens, budget: int) -> torch.Tensor:
        return tokens.positions

"""H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): heavy hitters and the newest tokens."""

from __future__ import annotations

import math

import torch

from ..errors import ConfigError
from .base import EvictionPolicy, Tokens


class H2O(EvictionPolicy):
    """Keeps ``ceil(recent * budget)`` newest tokens and, of the others, those that received most attention.

    Attention is the sum of softmax probabilities over all queries so far, per KV head (mean over the query
    heads that share it), in fp32. A decode step ranks by the sums up to the step before.
    """

    name = "h2o"
    nested = True
    needs_scores = True

    def __init__(self, recent: float = 0.5) -> None:
        if isinstance(recent, bool) or not isinstance(recent, (int, float)) or not 0 < recent < 1:
            raise ConfigError(f"recent must be a share strictly between 0 and 1, got {recent!r}")
        self.recent = float(recent)

    @property
    def minimum(self) -> int:
        return 2

    def priority(self, tokens: Tokens, budget: int) -> torch.Tensor:
        return tokens.scores.masked_fill(self._is_recent(tokens, budget), math.inf)

    def recent_tokens(self, budget: int) -> int | None:
        own = type(self).priority is H2O.priority and type(self).victim is H2O.victim
        return self._recent_count(budget) if own else None

    def victim(self, tokens: Tokens, budget: int) -> torch.Tensor:
        if type(self).priority is not H2O.priority:
            return super().victim(tokens, budget)
        # Score and age as one number, so that a single argmin finds the oldest of the lowest: floats that are
        # not negative are ordered as their bits are, and positions are below 2**32.
        rank = torch.add(tokens.positions, tokens.scores.view(torch.int32), alpha=2**32)
        rank.masked_fill_(self._is_recent(tokens, budget), torch.iinfo(torch.int64).max)
        return rank.argmin(dim=-1, keepdim=True)

    def _is_recent(self, tokens: Tokens, budget: int) -> torch.Tensor:
        return tokens.positions > tokens.newest - self._recent_count(budget)

    def _recent_count(self, budget: int) -> int:
        return math.ceil(self.recent * budget)

    def __repr__(self) -> str:
        return f"H2O(recent={self.recent})"

"""Policies that keep the newest tokens and, of the others, those of the highest score."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch

from .base import EvictionPolicy, Tokens


class ByScore(EvictionPolicy):
    """A number for each token, not negative, and a count of newest tokens that stay whatever theirs is."""

    @abstractmethod
    def recent_count(self, budget: int) -> int:
        """Newest tokens that stay."""

    def priority(self, tokens: Tokens, budget: int) -> torch.Tensor:
        return tokens.scores.masked_fill(self._is_recent(tokens, budget), math.inf)

    def recent_tokens(self, budget: int) -> int | None:
        own = type(self).priority is ByScore.priority and type(self).victim is ByScore.victim
        return self.recent_count(budget) if own else None

    def victim(self, tokens: Tokens, budget: int) -> torch.Tensor:
        if type(self).priority is not ByScore.priority:
            return super().victim(tokens, budget)
        # Score and age as one number, so that a single argmin finds the oldest of the lowest: floats that are
        # not negative are ordered as their bits are, and positions are below 2**32.
        rank = torch.add(tokens.positions, tokens.scores.view(torch.int32), alpha=2**32)
        rank.masked_fill_(self._is_recent(tokens, budget), torch.iinfo(torch.int64).max)
        return rank.argmin(dim=-1, keepdim=True)

    def _is_recent(self, tokens: Tokens, budget: int) -> torch.Tensor:
        return tokens.positions > tokens.newest - self.recent_count(budget)

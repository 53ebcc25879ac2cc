"""How many of the tokens that a policy values most are a KV head's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import CacheStateError
from .base import Signal


class TopScores(Signal):
    """One minus the share of a KV head's tokens among the best of all layers and heads, by the policy's own scores.

    As many are counted as the budget holds, those that stay in any case first. Scores must compare across heads:
    attention does, and what is predicted of it; cosines do not.
    """

    name = "top_scores"
    label = "1 - top_scores"
    wants_scores = True

    def start(self, n_layers: int) -> None:
        self._scores: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * n_layers
        self._budgets: Sequence[int] = (1,)

    def see_budget(self, tokens: Sequence[int]) -> None:
        self._budgets = tokens

    def see_scores(self, layer: int, scores: torch.Tensor, positions: torch.Tensor) -> None:
        self._scores[layer] = scores, positions

    def values(self) -> list[list[list[float]]]:  # type: ignore[override]
        """For each row, layer and KV head: 1 - share."""
        found = [pair for pair in self._scores if pair is not None]
        if len(found) < len(self._scores) or not found:
            raise CacheStateError("no scores were seen: the layers hold nothing")
        device = found[0][0].device
        values = []
        for row in range(len(found[0][0])):
            units = [
                scores[row, head][positions[row, head] >= 0].to(device)
                for scores, positions in found
                for head in range(scores.shape[1])
            ]
            whole = torch.cat(units)
            if not len(whole):  # nothing but padding so far
                values.append([[1.0] * scores.shape[1] for scores, _ in found])
                continue
            most = min(len(whole), self._budgets[row if len(self._budgets) > 1 else 0] * len(units))
            threshold = whole.kthvalue(len(whole) - most + 1).values
            longest = max(map(len, units))
            shares = iter([float((unit >= threshold).sum()) / max(1, longest) for unit in units])
            values.append([[1.0 - next(shares) for _ in range(scores.shape[1])] for scores, _ in found])
        self._scores = [None] * len(self._scores)
        return values

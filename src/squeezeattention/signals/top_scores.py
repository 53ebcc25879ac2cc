"""How many of the tokens that a policy values most are a KV head's: of all, or of its layer's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from ..errors import CacheStateError, ConfigError
from ..plan.budget import is_real
from .base import Signal


class ByScores(Signal):
    """What counts tokens of KV heads by the policy's own scores, those that stay in any case first."""

    wants_scores = True

    def start(self, n_layers: int) -> None:
        self._scores: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * n_layers
        self._budgets: Sequence[int] = (1,)

    def see_budget(self, tokens: Sequence[int]) -> None:
        self._budgets = tokens

    def see_scores(self, layer: int, scores: torch.Tensor, positions: torch.Tensor) -> None:
        self._scores[layer] = scores, positions

    @abstractmethod
    def shares(self, layers: list[list[torch.Tensor]], budget: int) -> list[list[float]]:
        """For each layer and KV head of a row, from the scores of its tokens; ``budget``: a layer's on average."""

    def values(self) -> list[list[list[float]]]:  # type: ignore[override]
        """For each row, layer and KV head: 1 - share."""
        found = [pair for pair in self._scores if pair is not None]
        if len(found) < len(self._scores) or not found:
            raise CacheStateError("no scores were seen: the layers hold nothing")
        self._scores = [None] * len(self._scores)
        values = []
        for row in range(len(found[0][0])):
            layers = [
                [own[held >= 0] for own, held in zip(scores[row], positions[row], strict=True)]
                for scores, positions in found
            ]
            budget = self._budgets[row if len(self._budgets) > 1 else 0]
            values.append([[1.0 - share for share in heads] for heads in self.shares(layers, budget)])
        return values


class TopScores(ByScores):
    """One minus the share of a KV head's tokens among the best of all layers and heads, by the policy's own scores.

    As many are counted as the budget holds for all; of each head its own best come first, ``floor`` tokens or a quarter
    of the average budget: what fluency takes. Scores must compare across heads: attention does, and what is predicted
    of it; cosines do not.

    Raises :class:`ConfigError` for a floor that is no number of tokens.
    """

    name = "top_scores"
    label = "1 - top_scores"

    def __init__(self, floor: int = 64) -> None:
        if isinstance(floor, bool) or not isinstance(floor, int) or floor < 1:
            raise ConfigError(f"floor must be a whole number of at least 1 token, got {floor!r}")
        self.floor = floor

    def shares(self, layers: list[list[torch.Tensor]], budget: int) -> list[list[float]]:
        units = [unit for layer in layers for unit in layer]
        chosen = iter(_among_the_best(units, min(self.floor, budget // 4), budget * len(units)))
        return [[next(chosen) for _ in layer] for layer in layers]


class LayerScores(ByScores):
    """One minus the share of a KV head's tokens among the best of its layer, by the policy's own scores.

    As many are counted as the layer's budget holds for all heads; of each head its own best come first, ``safeguard``
    of a head's even share. Scores need to compare across the heads of a layer only.

    Raises :class:`ConfigError` for a safeguard that is no share.
    """

    name = "layer_scores"
    label = "1 - layer_scores"

    def __init__(self, safeguard: float = 0.2) -> None:
        if not is_real(safeguard) or not 0 <= safeguard <= 1:
            raise ConfigError(f"safeguard must be a share in [0, 1], got {safeguard!r}")
        self.safeguard = float(safeguard)

    def shares(self, layers: list[list[torch.Tensor]], budget: int) -> list[list[float]]:
        return [_among_the_best(layer, int(self.safeguard * budget), budget * len(layer)) for layer in layers]


def _among_the_best(units: list[torch.Tensor], own: int, count: int) -> list[float]:
    """Share of each unit among the ``count`` best of all; of each its ``own`` best come first."""
    ranked = [unit.to(units[0].device).sort(descending=True).values for unit in units]
    for unit in ranked:
        unit[:own] = torch.inf
    sizes = torch.tensor([len(unit) for unit in ranked], device=units[0].device)
    unit_of = torch.arange(len(units), device=sizes.device).repeat_interleave(sizes)
    best = torch.cat(ranked).sort(descending=True, stable=True).indices[:count]
    chosen: list[int] = unit_of[best].bincount(minlength=len(units)).tolist()
    return [tokens / max(1, sum(chosen)) for tokens in chosen]

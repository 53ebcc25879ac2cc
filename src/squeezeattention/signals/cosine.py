"""The paper's signal (SqueezeAttention, section 3): how much attention turns the residual stream."""

from __future__ import annotations

import torch

from ..errors import CacheStateError
from .base import Signal

#: Tokens that are lifted to fp32 at once.
_BLOCK = 1024


class Cosine(Signal):
    """Mean cosine similarity of the residual stream before and after attention, over real prompt tokens.

    1 = attention changed nothing. Accumulated in fp32 whatever the model's dtype: in bf16 the cosines of
    neighbouring layers collapse to the same value.
    """

    name = "cosine"
    wants_hidden = True

    def start(self, n_layers: int) -> None:
        self._sums: list[torch.Tensor | None] = [None] * n_layers  # [2, B]: sum of cosines, and tokens

    def see_hidden(self, layer: int, before: torch.Tensor, after: torch.Tensor, real: torch.Tensor | None) -> None:
        rows, length = before.shape[:2]
        total = before.new_zeros(rows, dtype=torch.float32)
        for first in range(0, length, _BLOCK):
            block = slice(first, first + _BLOCK)
            cosine = torch.cosine_similarity(before[:, block].float(), after[:, block].float(), dim=-1)
            if real is not None:
                cosine = cosine * real[:, block].to(cosine.device)
            total = total + cosine.sum(dim=1)
        count = total.new_full((rows,), length) if real is None else real.sum(dim=1).to(total)
        pair, seen = torch.stack([total, count]), self._sums[layer]
        self._sums[layer] = pair if seen is None else seen + pair

    def select_rows(self, rows: torch.Tensor) -> None:
        self._sums = [None if pair is None else pair[:, rows.to(pair.device)] for pair in self._sums]

    def values(self) -> list[list[float]]:
        pairs = [pair for pair in self._sums if pair is not None]
        if len(pairs) < len(self._sums) or not pairs:
            missing = [i for i, pair in enumerate(self._sums) if pair is None]
            raise CacheStateError(f"no residual stream was seen for layers {missing}: their attention did not run")
        sums = torch.stack([pair.to(pairs[0].device) for pair in pairs])
        means: list[list[float]] = (sums[:, 0] / sums[:, 1].clamp(min=1)).T.tolist()
        return means

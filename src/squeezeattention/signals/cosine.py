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
        self._sums: list[torch.Tensor | None] = [None] * n_layers
        self._counts: list[torch.Tensor | int] = [0] * n_layers

    def see_hidden(self, layer: int, before: torch.Tensor, after: torch.Tensor, real: torch.Tensor | None) -> None:
        total = before.new_zeros((), dtype=torch.float32)
        for first in range(0, before.shape[1], _BLOCK):
            block = slice(first, first + _BLOCK)
            cosine = torch.cosine_similarity(before[:, block].float(), after[:, block].float(), dim=-1)
            if real is not None:
                cosine = cosine * real[:, block].to(cosine.device)
            total = total + cosine.sum()
        count = before.shape[0] * before.shape[1] if real is None else real.sum().to(total.device)
        seen = self._sums[layer]
        self._sums[layer] = total if seen is None else seen + total
        self._counts[layer] = self._counts[layer] + count

    def values(self) -> list[float]:
        sums = [total for total in self._sums if total is not None]
        if len(sums) < len(self._sums) or not sums:
            missing = [i for i, total in enumerate(self._sums) if total is None]
            raise CacheStateError(f"no residual stream was seen for layers {missing}: their attention did not run")
        device = sums[0].device
        means = [
            total.to(device) / (count.to(device) if isinstance(count, torch.Tensor) else count)
            for total, count in zip(sums, self._counts, strict=True)
        ]
        return [float(value) for value in torch.stack(means).tolist()]

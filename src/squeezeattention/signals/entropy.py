"""How spread a layer's attention is."""

from __future__ import annotations

import torch

from .sampled import Rows, SampledAttention, layer_mean


class Entropy(SampledAttention):
    """One minus the entropy of attention over that of uniform attention to all visible tokens."""

    name = "entropy"
    label = "1 - entropy"

    def need(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        entropy = layer_mean(torch.special.entr(rows.probabilities).sum(dim=-1))
        most = rows.visible.clamp(min=2).log()
        return entropy / most, (rows.visible > 1).float()

"""How many tokens a layer's attention needs: the smallest set that holds a share of the mass."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .sampled import Rows, SampledAttention, layer_mean


class Span(SampledAttention):
    """One minus the share of visible tokens that together hold ``mass`` of the attention (ZigZagKV, 2412.09036).

    Its "minimum budget size" per head; the mean over heads and sampled queries is the layer's need.
    """

    name = "span"
    label = "1 - span"

    def __init__(self, mass: float = 0.9) -> None:
        if not 0 < mass < 1:
            raise ConfigError(f"mass must be a share strictly between 0 and 1, got {mass!r}")
        self.mass = mass

    def need(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        ordered = rows.probabilities.sort(dim=-1, descending=True).values.cumsum(dim=-1)
        target = self.mass * ordered[..., -1:]  # learned sinks take part of the mass
        count = (ordered < target).sum(dim=-1) + 1
        seen = rows.visible.clamp(min=1)
        return layer_mean(count / seen[:, None]), (rows.visible > 1).float()

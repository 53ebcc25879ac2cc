"""How local a layer's attention is: one minus its *far mass*."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .sampled import Rows, SampledAttention, layer_mean


class Locality(SampledAttention):
    """Share of attention on the first ``sinks`` tokens and the newest ``window``; the rest is far mass.

    What a layer reads there survives any eviction policy. A layer whose attention goes farther back loses it
    when its budget is cut, however little it writes: the cosine does not see that. A query weighs as much as
    the share of its tokens that is far, so the beginning of a prompt, where nothing is, says nothing.
    """

    name = "locality"

    def __init__(self, sinks: int = 4, window: int = 64) -> None:
        if sinks < 0 or window < 1:
            raise ConfigError(f"sinks must be at least 0 and window at least 1, got {sinks} and {window}")
        self.sinks, self.window = sinks, window

    def far(self, rows: Rows) -> torch.Tensor:
        """[B or 1, H or 1, R, N] bool: keys outside sinks and window."""
        return (rows.distance >= self.window) & (rows.key_positions >= self.sinks)[..., None, :]

    def weight(self, rows: Rows) -> torch.Tensor:
        """[B, R]: share of each query's tokens that is far."""
        seen = rows.visible.clamp(min=1)
        return (seen - self.sinks - self.window).clamp(min=0) / seen

    def need(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        return layer_mean(rows.mass(self.far(rows))), self.weight(rows)

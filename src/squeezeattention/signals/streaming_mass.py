"""How lazy a layer is: whether its last queries read anything that streaming attention would drop."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .base import AttentionSample
from .last_queries import LastQueries, Tail
from .sampled import layer_mean


class StreamingMass(LastQueries):
    """Share of the last queries' attention on the first ``sinks`` tokens and the newest ``recent`` (2410.13846).

    LightTransfer's lazy ratio (SimLayerKV before), mean over heads and queries. The paper's recent window
    is of about 1,000 tokens, for prompts of many thousands; the default here is for short ones. A learned sink's
    part of the softmax counts as lazy: no token is read with it.
    """

    name = "streaming_mass"

    def __init__(self, window: int = 32, sinks: int = 4, recent: int = 64) -> None:
        super().__init__(window)
        if sinks < 0 or recent < 1:
            raise ConfigError(f"sinks must be at least 0 and recent at least 1, got {sinks} and {recent}")
        self.sinks, self.recent = sinks, recent

    def measure(self, sample: AttentionSample, tail: Tail) -> torch.Tensor:
        """[2, B]: far mass summed over the queries, and their number."""
        far = torch.zeros(len(tail.positions), device=sample.queries.device)
        for rows in tail.blocks(sample):
            mask = (rows.distance >= self.recent) & (rows.key_positions >= self.sinks)[..., None, :]
            far = far + layer_mean(rows.mass(mask)).sum(dim=1)
        return torch.stack([far, (tail.positions >= 0).sum(dim=1).to(far)])

    def combine(self, measured: list[torch.Tensor]) -> list[list[float]]:
        pairs = torch.stack([pair.to(measured[0].device) for pair in measured])
        shares = pairs[:, 0] / pairs[:, 1].clamp(min=1)
        values: list[list[float]] = (1.0 - shares.double()).T.tolist()
        return values

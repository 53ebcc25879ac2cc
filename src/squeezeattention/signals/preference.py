"""How spread, and how changing, a layer's attention is."""

from __future__ import annotations

import math

import torch

from ..errors import ConfigError
from ..plan.budget import is_real
from .base import AttentionSample
from .last_queries import LastQueries, Tail


class Preference(LastQueries):
    """One minus CAKE's layer preference, relative to the largest: P = H^(1/tau1) * V^(1/tau2) (2503.12491).

    Of the last queries' attention to the tokens before them: H is its entropy over the tokens, mean over
    queries and heads; V its variance from query to query, summed over the tokens, mean over heads. Sums and
    means differ by a factor that all layers share, which the division by the largest P takes out. The paper
    tunes both temperatures for each model; here they are 1 unless told.
    """

    name = "preference"
    label = "1 - preference"

    def __init__(self, window: int = 32, tau1: float = 1.0, tau2: float = 1.0) -> None:
        super().__init__(window)
        for name, tau in (("tau1", tau1), ("tau2", tau2)):
            if not is_real(tau) or not 0 < tau < math.inf:
                raise ConfigError(f"{name} must be a finite number above 0, got {tau!r}")
        self.tau1, self.tau2 = tau1, tau2

    def measure(self, sample: AttentionSample, tail: Tail) -> torch.Tensor:
        """[2, B]: H and V."""
        before = tail.before(sample)[:, :, None]
        real = tail.positions >= 0
        entropy = torch.zeros(len(real), device=sample.queries.device)
        seen = torch.zeros(len(real), 1, 1, device=entropy.device)
        mean = scatter = torch.zeros((), device=entropy.device)
        queries = real.sum(dim=1)[:, None].to(entropy).clamp(min=1)
        for rows in tail.blocks(sample):
            mass = rows.probabilities * rows.per_query_head(before)
            here = (rows.positions >= 0)[:, None, :, None]
            entropy = entropy + (torch.special.entr(mass).sum(dim=(2, 3)) / queries).mean(dim=1)
            # Blocks are merged by their means (Chan): a difference of sums would cancel where attention is steady.
            count = here.sum(dim=2).to(mass)
            own = mass.sum(dim=2) / count.clamp(min=1)
            both = (seen + count).clamp(min=1)
            scatter = scatter + ((mass - own[:, :, None]) * here).square().sum(dim=2)
            scatter = scatter + (own - mean).square() * (seen * count / both)
            mean = mean + (own - mean) * (count / both)
            seen = seen + count
        variance = (scatter.sum(dim=-1) / (seen[..., 0] - 1).clamp(min=1)).mean(dim=1)
        return torch.stack([entropy, variance])

    def combine(self, measured: list[torch.Tensor]) -> list[list[float]]:
        pairs = torch.stack([pair.to(measured[0].device) for pair in measured]).permute(2, 0, 1).tolist()
        return [self._relative(row) for row in pairs]

    def _relative(self, pairs: list[list[float]]) -> list[float]:
        preferences = [h ** (1 / self.tau1) * v ** (1 / self.tau2) for h, v in pairs]
        most = max(preferences)
        return [1.0 - preference / most if most > 0 else 1.0 for preference in preferences]

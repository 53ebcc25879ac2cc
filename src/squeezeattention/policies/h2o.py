"""H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): heavy hitters and the newest tokens."""

from __future__ import annotations

import math

from ..errors import ConfigError
from .by_score import ByScore


class H2O(ByScore):
    """Keeps ``ceil(recent * budget)`` newest tokens and, of the others, those that received most attention.

    Attention is the sum of softmax probabilities over all queries so far, per KV head (mean over the query
    heads that share it), in fp32. A decode step ranks by the sums up to the step before.
    """

    name = "h2o"
    nested = True
    needs_scores = True

    def __init__(self, recent: float = 0.5) -> None:
        if isinstance(recent, bool) or not isinstance(recent, (int, float)) or not 0 < recent < 1:
            raise ConfigError(f"recent must be a share strictly between 0 and 1, got {recent!r}")
        self.recent = float(recent)

    @property
    def minimum(self) -> int:
        return 2

    def recent_count(self, budget: int) -> int:
        return math.ceil(self.recent * budget)

    def __repr__(self) -> str:
        return f"H2O(recent={self.recent})"

"""How sure a mean is: a bootstrap over contexts, since questions about one context are no independent draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
#: With fewer contexts there is no interval: there are too few ways to draw them for one to mean anything.
LEAST_CONTEXTS = 5

#: Scores of the questions of each context.
Clusters = Sequence[Sequence[float]]


class Mean(NamedTuple):
    """A mean and its 95 % interval; ``None`` twice with fewer than :data:`LEAST_CONTEXTS` contexts of a task."""

    mean: float
    low: float | None
    high: float | None


def bootstrap(strata: Sequence[Clusters]) -> Mean:
    """Mean over ``strata`` (tasks) of the mean over all questions of each, with a percentile interval.

    Whole contexts are drawn with replacement, within each task. The same input gives the same numbers. With few
    contexts such an interval is too narrow rather than too wide.
    """
    generator = torch.Generator().manual_seed(SEED)
    means, draws = [], []
    for clusters in strata:
        sums = torch.tensor([sum(scores) for scores in clusters], dtype=torch.float64)
        counts = torch.tensor([len(scores) for scores in clusters], dtype=torch.float64)
        picks = torch.randint(len(clusters), (RESAMPLES, len(clusters)), generator=generator)
        means.append(float(sums.sum() / counts.sum()))
        draws.append(sums[picks].sum(1) / counts[picks].sum(1))
    mean = sum(means) / len(means)
    if any(len(clusters) < LEAST_CONTEXTS for clusters in strata):
        return Mean(mean, None, None)
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.stack(draws).mean(0).quantile(tails).tolist()
    return Mean(mean, low, high)


def differences(first: Clusters, second: Clusters) -> list[list[float]]:
    """Question by question of the same contexts, ``first`` minus ``second``."""
    return [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)]

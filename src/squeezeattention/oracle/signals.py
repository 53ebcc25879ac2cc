"""How well signals, read while a prompt goes in, rank the layers as the measured losses do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import SqueezeCache
from ..policies.base import EvictionPolicy
from ..signals import SIGNALS
from ..stability import spearman
from ..tasks.driving import read
from .cases import Case


@dataclass(frozen=True)
class SignalRank:
    """One signal: its mean in each layer over all prompts, and rank correlations with measured losses."""

    signal: str
    signal_values: tuple[float, ...]
    """High = the layer matters less, as everywhere."""
    alone: float | None
    """Spearman with the loss when a layer alone is cut, 1 = the same order."""
    greedy: float | None
    """Spearman with the order in which layers were cut greedily, 1 = the same."""


def shown_by(policy: EvictionPolicy) -> list[str]:
    """Signals that can be measured with this policy: some go by its scores."""
    scores = policy.needs_scores or policy.scores_tokens
    return [name for name in SIGNALS if scores or not SIGNALS.create(name).wants_scores]


def rank_signals(
    model: Any,
    cases: Sequence[Case],
    policy: EvictionPolicy,
    budget: Any,
    losses: Sequence[float],
    order: Sequence[int],
    *,
    signals: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SignalRank]:
    """Read the contexts once for each signal (all that the policy can show), best rank correlation first."""
    names = shown_by(policy) if signals is None else list(signals)
    found = []
    for done, name in enumerate(names):
        rows = []
        for case in cases:
            cache = SqueezeCache(model, budget, policy, "squeeze", signal=name, min_tokens=1)
            read(model, cache, case.context)
            if cache.plan is not None and cache.plan.signal_values is not None:
                rows.append(cache.plan.signal_values)
            cache.detach()
        found.append(_rank(name, [statistics.fmean(layer) for layer in zip(*rows, strict=True)], losses, order))
        progress(done + 1, len(names))
    return sorted(found, key=lambda one: -2.0 if one.alone is None else one.alone, reverse=True)


def _rank(name: str, signal_values: Sequence[float], losses: Sequence[float], order: Sequence[int]) -> SignalRank:
    matters = [-value for value in signal_values]
    cut_at = [float(order.index(layer)) for layer in range(len(losses))]
    return SignalRank(name, tuple(signal_values), spearman(matters, losses), spearman(matters, cut_at))

"""How well signals, read while a prompt goes in, rank the layers as the measured losses do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import SqueezeCache
from ..allocators import Allocator, Squeeze
from ..policies.base import EvictionPolicy
from ..signals import SIGNALS
from ..stability import spearman
from ..tasks.driving import read_chunks
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
    """Read each context once, with all signals watching (all that the policy can show), best rank correlation first."""
    names = shown_by(policy) if signals is None else list(dict.fromkeys(signals))
    rows: dict[str, list[Sequence[float]]] = {name: [] for name in names}
    for done, case in enumerate(cases):
        cache = SqueezeCache(model, budget, policy, _by(names[0]), signal=names, min_tokens=1)
        with cache.prefilling():
            read_chunks(model, cache, case.context, None)
            for name in names:
                plan = cache.twin(allocator=_by(name)).plan
                if plan is not None and plan.signal_values is not None:
                    rows[name].append(plan.signal_values)
            cache.reset()  # nothing is to be cut at the block's end
        cache.detach()
        progress(done + 1, len(cases))
    found = [_rank(name, [statistics.fmean(layer) for layer in zip(*rows[name], strict=True)], losses, order)
             for name in names]  # fmt: skip
    return sorted(found, key=lambda one: -2.0 if one.alone is None else one.alone, reverse=True)


def _by(signal: str) -> Allocator:
    """The paper's rule by another signal."""
    rule: Allocator = type("Squeeze", (Squeeze,), {"signal": signal})()
    return rule


def _rank(name: str, signal_values: Sequence[float], losses: Sequence[float], order: Sequence[int]) -> SignalRank:
    matters = [-value for value in signal_values]
    cut_at = [float(order.index(layer)) for layer in range(len(losses))]
    return SignalRank(name, tuple(signal_values), spearman(matters, losses), spearman(matters, cut_at))

"""Reading prompts into caches, and what they left there: bytes, plans, seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import BudgetPlan, SqueezeCache
from ..tasks.driving import read
from .answering import synchronize
from .holding import Holding, holding_of


@dataclass
class Reader:
    """Reads the prompts of one sample, each into a cache of its own, and keeps the measurements."""

    model: Any
    make_cache: Callable[[], Any]
    chunk: int | None
    cut: list[int] = field(default_factory=list)
    """Bytes of keys and values right after each prompt was cut. Layers with more room than that fill up later."""
    peaks: list[int] = field(default_factory=list)
    """The most that was held while each was read."""
    plans: list[BudgetPlan] = field(default_factory=list)
    seconds: float = 0.0

    def read(self, tokens: Sequence[int]) -> Any:
        """A cache that holds the prompt, cut."""
        cache = self.make_cache()
        synchronize(self.model.device)
        began = time.perf_counter()
        read(self.model, cache, tokens, chunk=self.chunk)
        synchronize(self.model.device)
        self.seconds += time.perf_counter() - began
        self._measure(cache)
        return cache

    def _measure(self, cache: Any) -> None:
        held = holding_of(cache).bytes
        self.cut.append(held)
        if not isinstance(cache, SqueezeCache):
            self.peaks.append(held)
            return
        self.peaks.append(cache.memory().peak_bytes)
        if (plan := cache.plan) is not None:
            self.plans.append(plan)

    def to_dict(self, end: Holding) -> dict[str, Any]:
        """Sizes, with what was held at the ``end`` of the answers, and the plans. One prompt, unless the questions
        are visible: then the mean, and the highest peak."""
        return {
            **end._asdict(),
            "cut_bytes": statistics.fmean(self.cut),
            "peak_bytes": max(*self.peaks, end.bytes),
            "plans": [_plan_json(plan) for plan in self.plans],
            "prefill_seconds": round(self.seconds, 4),
        }


def signal_values_of(recorded: Mapping[str, Any]) -> list[float] | None:
    """A recorded plan's signal, low = the layer matters more; records of 0.1 call it importance."""
    found: list[float] | None = recorded["signal_values"] if "signal_values" in recorded else recorded["importance"]
    return found


def _plan_json(plan: BudgetPlan) -> dict[str, Any]:
    return {
        "budgets": list(plan.budgets),
        "groups": list(plan.groups),
        "signal": plan.signal,
        "signal_values": None if plan.signal_values is None else list(plan.signal_values),
        "p": plan.p,
        "warnings": list(plan.warnings),
    }

"""Reading prompts into caches, once for many configurations, and what is left there: bytes, plans, seconds."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import BudgetPlan, SqueezeCache
from ..allocators import Allocator
from ..device import synchronize
from ..tasks.driving import read, read_chunks
from .config import Config
from .holding import Holding, holding_of


class Reading:
    """One prompt, read once for all configurations of a group (see :attr:`Config.reading`) and cut for each.

    What is read stays whole until the end: so much memory does it take, and what one configuration holds beside it. A
    bounded prefill cuts while it reads, and is its configuration's own.
    """

    def __init__(
        self, model: Any, tokens: Sequence[int], configs: Sequence[Config], new_tokens: int, chunk: int | None
    ) -> None:
        """``new_tokens``: the most that follow; ``chunk``: tokens of a piece. Raises what making the cache and reading
        raise."""
        self._model = model
        signals = dict.fromkeys(config.signal for config in configs if config.signal)
        # What goes by a signal can do for what does not.
        self._config = next((config for config in configs if config.signal), configs[0])
        others = [name for name in signals if name != self._config.signal]
        self._open = contextlib.ExitStack()
        self._cache = self._config.make_cache(model, new_tokens, others)
        self._seconds, self.logits = self._timed(lambda: self._read(list(tokens), chunk))
        """The prompt's last ones, ``[1, V]``."""

    def _read(self, tokens: list[int], chunk: int | None) -> torch.Tensor:
        cache = self._cache
        if not self._is_shared:
            return read(self._model, cache, tokens, chunk=chunk)
        self._open.enter_context(cache.prefilling())
        logits = read_chunks(self._model, cache, tokens, chunk)
        cache.twin()  # what is read again is read now
        return logits

    def cut(self, config: Config) -> tuple[Any, float]:
        """The cache that ``config`` makes of it, and the seconds that takes, reading included."""
        if not self._is_shared:
            return self._cache, self._seconds
        allocator = None if config.allocator == self._config.allocator else config.make_allocator()
        seconds, twin = self._timed(lambda: self._cut(config.budget, allocator))
        return twin, self._seconds + seconds

    def _cut(self, budget: str | None, allocator: Allocator | None) -> SqueezeCache:
        twin: SqueezeCache = self._cache.twin(budget=budget, allocator=allocator)
        twin.compact()
        return twin

    @property
    def _is_shared(self) -> bool:
        return isinstance(self._cache, SqueezeCache) and self._cache.prefill != "bounded"

    def _timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        synchronize(self._model.device)
        began = time.perf_counter()
        found = work()
        synchronize(self._model.device)
        return time.perf_counter() - began, found

    def close(self) -> None:
        """Let go of the prompt."""
        if self._is_shared:
            self._cache.reset()
        self._open.close()


@dataclass
class Measured:
    """What was measured of one configuration's caches, one for each prompt of a sample."""

    cut: list[int] = field(default_factory=list)
    """Bytes of keys and values right after each prompt was cut. Layers with more room than that fill up later."""
    peaks: list[int] = field(default_factory=list)
    """The most that was held while each was read."""
    plans: list[BudgetPlan] = field(default_factory=list)
    seconds: float = 0.0

    def see(self, cache: Any, seconds: float) -> None:
        """A prompt was read and cut."""
        self.seconds += seconds
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

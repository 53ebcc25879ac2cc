"""Which layers can be cut: each alone, then one more at a time."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..allocators.measured import Measured
from ..errors import ConfigError
from ..policies.base import EvictionPolicy
from .cases import Case
from .losses import Whole, whole

#: Told after each measurement: how many are done, and how many there are in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Losses:
    """Losses in nats a reply token; ``alone`` and ``greedy`` have an entry for each case in each of their entries."""

    full: tuple[float, ...]
    """With nothing cut, per case."""
    alone: tuple[tuple[float, ...], ...]
    """Per layer: with that layer cut."""
    order: tuple[int, ...]
    """The layer that was cut first, second, ..."""
    greedy: tuple[tuple[float, ...], ...]
    """Per round: with the first layers of ``order`` cut, up to this round's."""

    @property
    def added(self) -> tuple[float, ...]:
        """Per layer: mean loss that cutting it alone adds."""
        return tuple(
            statistics.fmean(cut - full for cut, full in zip(cuts, self.full, strict=True)) for cuts in self.alone
        )

    def allocator(self, setting: dict[str, Any]) -> Measured:
        """The rule that follows them; ``setting`` says what was measured."""
        return Measured(
            self.added, self.order,
            setting={**setting, "full": self.full, "alone": self.alone, "greedy": self.greedy},
        )  # fmt: skip


def measure_layers(
    model: Any,
    cases: Sequence[Case],
    policy: EvictionPolicy,
    *,
    n_layers: int,
    keep: int = 32,
    greedy: bool = True,
    progress: Progress = lambda done, total: None,
) -> Losses:
    """Cut each layer alone to ``keep`` tokens, the others whole; then cut more and more of them.

    Each greedy round cuts the layer that adds least to what is cut already. Without ``greedy`` the order is that
    of the losses alone, and its rounds are measured all the same. Each context is read once, and all of them are held
    uncut until the end. Raises :class:`ConfigError` for no cases and for
    a ``keep`` below what the policy needs.
    """
    if not cases:
        raise ConfigError("measuring layers needs at least one case")
    if keep < policy.minimum:
        raise ConfigError(f"keep={keep} tokens is too few: {policy.name} needs at least {policy.minimum}")
    with contextlib.ExitStack() as stack:
        readings = [(case, stack.enter_context(whole(model, case, policy))) for case in cases]
        return _search(readings, n_layers, keep, greedy, progress)


def _search(
    readings: Sequence[tuple[Case, Whole]], n_layers: int, keep: int, greedy: bool, progress: Progress
) -> Losses:
    total = 1 + n_layers + ((n_layers - 1) * n_layers // 2 if greedy else n_layers - 1)
    done = 0

    def losses(cut: Collection[int]) -> tuple[float, ...]:
        nonlocal done
        found = []
        for case, reading in readings:
            most = len(case.context) + case.longest
            found.append(reading.losses([min(keep, most) if layer in cut else most for layer in range(n_layers)]))
        done += 1
        progress(done, total)
        return tuple(found)

    full = losses(())
    alone = tuple(losses((layer,)) for layer in range(n_layers))
    order = sorted(range(n_layers), key=lambda layer: (statistics.fmean(alone[layer]), layer))
    rounds = [alone[order[0]]]
    if not greedy:
        rounds += [losses(order[: count + 1]) for count in range(1, n_layers)]
        return Losses(full, alone, tuple(order), tuple(rounds))
    cut, left = order[:1], sorted(order[1:])
    while left:
        tried = {layer: losses((*cut, layer)) for layer in left}
        best = min(left, key=lambda layer: (statistics.fmean(tried[layer]), layer))
        cut.append(best)
        left.remove(best)
        rounds.append(tried[best])
    return Losses(full, alone, tuple(cut), tuple(rounds))

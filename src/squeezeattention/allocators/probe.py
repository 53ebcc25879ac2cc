"""This project's rule: budgets for the KV heads that look back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..plan.budget import is_real
from .base import Allocation, HeadAllocator

#: What a head is worth that did not look back at all: a sample is a sample.
_SLEEPING = 0.02


@dataclass(frozen=True)
class Probe(HeadAllocator):
    """Most of the budget for the KV heads that retrieve, a floor for all others.

    Which heads retrieve the signal says (``replay``: the model reads some of its own prompt again). Every head gets
    ``floor`` tokens, sinks and a short window, which is what fluency takes; the rest is shared out by need to the power
    of ``power``: above 1, since half of what such a head wants is worth less than half. The floor takes half of the
    budget at most, and nothing is given that a head cannot use. With ``heads="equal"`` the heads of a layer get the
    same, by their mean need: budgets for layers, as in the paper, from a signal that sees heads.

    Raises :class:`ConfigError` for settings that cannot work.
    """

    name: ClassVar[str] = "probe"
    signal: ClassVar[str] = "replay"
    floor: int = 64
    power: float = 1.5
    heads: str = "own"

    def __post_init__(self) -> None:
        if isinstance(self.floor, bool) or not isinstance(self.floor, int) or self.floor < 1:
            raise ConfigError(f"floor must be a whole number of at least 1 token, got {self.floor!r}")
        if not is_real(self.power) or not self.power > 0:
            raise ConfigError(f"power must be a number above 0, got {self.power!r}")
        if self.heads not in ("own", "equal"):
            raise ConfigError(f'heads must be "own" or "equal", got {self.heads!r}')

    def allocate_heads(self, signal_values: Sequence[Sequence[float]], n_layers: int) -> Allocation:
        needs = [[max(0.0, 1.0 - value) for value in layer] for layer in signal_values]
        groups = (1,) * n_layers
        if max(need for layer in needs for need in layer) <= 0:
            even = tuple((1.0,) * len(layer) for layer in needs)
            warning = "no KV head looked back (the prompt may be too short to tell): uniform budgets"
            return Allocation((1.0,) * n_layers, groups, (warning,), heads=even)
        if self.heads == "equal":
            by_layer = tuple((sum(layer) / len(layer) + _SLEEPING) ** self.power for layer in needs)
            return Allocation(by_layer, groups, floor=self.floor, floor_share=0.5)
        shares = tuple(tuple((need + _SLEEPING) ** self.power for need in layer) for layer in needs)
        return Allocation((1.0,) * n_layers, groups, floor=self.floor, floor_share=0.5, heads=shares)

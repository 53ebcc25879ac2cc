"""This project's rule: whole KV heads, those that look back first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .base import Allocation, Allocator, check_signal_values


@dataclass(frozen=True)
class Probe(Allocator):
    """The whole text for the KV heads that retrieve, a floor for all others.

    Which heads retrieve the signal says (``replay``: the model reads some of its own prompt again). Half of what such
    a head wants is worth next to nothing, so budgets are not shared in proportion: every head gets ``floor`` tokens,
    sinks and a short window, which is what fluency takes, and what is left fills head after head, the one that needs
    most first, each up to all that it can use. The floor takes half of the budget at most.
    """

    name: ClassVar[str] = "probe"
    signal: ClassVar[str] = "replay"
    needs_signal: ClassVar[bool] = True
    per_head: ClassVar[bool] = True
    floor: int = 96

    def __post_init__(self) -> None:
        if isinstance(self.floor, bool) or not isinstance(self.floor, int) or self.floor < 1:
            raise ConfigError(f"floor must be a whole number of at least 1 token, got {self.floor!r}")

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        """With a signal of layers: whole layers."""
        values = check_signal_values(self.name, signal_values, n_layers)
        return self.allocate_heads([[value] for value in values], n_layers)

    def allocate_heads(self, signal_values: Sequence[Sequence[float]], n_layers: int) -> Allocation:
        needs = tuple(tuple(max(0.0, 1.0 - value) for value in layer) for layer in signal_values)
        groups = (1,) * n_layers
        if max(need for layer in needs for need in layer) <= 0:
            even = tuple((1.0,) * len(layer) for layer in needs)
            warning = "no KV head looked back (the prompt may be too short to tell): uniform budgets"
            return Allocation((1.0,) * n_layers, groups, (warning,), heads=even)
        return Allocation((1.0,) * n_layers, groups, floor=self.floor, floor_share=0.5, heads=needs, whole=True)

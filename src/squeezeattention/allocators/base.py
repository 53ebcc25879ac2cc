"""What an allocator is: a rule that divides the cache among the layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from ..plan.budget import is_real
from ..plan.plan import BudgetPlan


@dataclass(frozen=True)
class Allocation:
    """Relative shares, one per layer, before floors, caps and rounding."""

    shares: tuple[float, ...]  # not negative; 1.0 = the average layer
    groups: tuple[int, ...]  # 1 = most important; all 1 without groups
    warnings: tuple[str, ...] = ()
    floor: int = 1  # tokens that every layer should keep, as far as ``floor_share`` of the average budget pays for them
    floor_share: float = 0.25
    heads: tuple[tuple[float, ...], ...] | None = None  # shares of each layer's KV heads, instead of ``shares``
    plan: BudgetPlan | None = None  # finished budgets, to be taken as they are instead of the shares


class Allocator(ABC):
    """A rule that divides the cache among the layers. Stateless: the same input gives the same shares."""

    name: ClassVar[str]
    needs_signal: ClassVar[bool]  # whether allocate() must be given what a signal measured
    signal: ClassVar[str] = "cosine"  # the signal it is made for, used unless another is asked for
    needs_calibration: ClassVar[bool] = False  # whether a file about the model must be at hand
    per_head: ClassVar[bool] = False  # whether the signal has a number for each KV head of a layer
    p: float | None = None  # share that the least important group keeps; None: the rule has no such cut

    def for_model(self, model: Any) -> Allocator:
        """The rule for caches of this model: itself, unless it has to know more. Raises :class:`PlanError` if it is of
        another model."""
        return self

    @abstractmethod
    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        """Shares of ``n_layers`` layers.

        ``signal_values`` holds what the signal measured, oriented like the paper's cosine: a *high* value marks
        a layer that matters *less*. Raises :class:`ConfigError` when a signal is needed but missing, not
        finite, or not one value per layer.
        """

    def allocate_heads(self, signal_values: Sequence[Sequence[float]], n_layers: int) -> Allocation:
        """With :attr:`per_head`: shares (``Allocation.heads``) from a number for each layer and KV head."""
        raise ConfigError(f"allocator {self.name!r} divides among layers, not among their heads")


class HeadAllocator(Allocator):
    """A rule that divides among KV heads, by a signal that has a number for each; it has :meth:`allocate_heads`."""

    needs_signal: ClassVar[bool] = True
    per_head: ClassVar[bool] = True

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        """With a signal of layers: as if each had one head."""
        values = check_signal_values(self.name, signal_values, n_layers)
        return self.allocate_heads([[value] for value in values], n_layers)


def check_p(p: object) -> float:
    """``p`` as a float; :class:`ConfigError` unless it is a number in (0, 1]."""
    if not is_real(p) or not 0 < p <= 1:
        raise ConfigError(f"p must be a number above 0 and at most 1 (0.3 to 0.4 in the paper), got {p!r}")
    return float(p)


def check_signal_values(name: str, signal_values: Sequence[float] | None, n_layers: int) -> list[float]:
    """The signal as floats, one finite value per layer; else :class:`ConfigError`."""
    if signal_values is None:
        raise ConfigError(f"allocator {name!r} needs what a signal measured in every layer; give it a signal")
    if len(signal_values) != n_layers:
        raise ConfigError(f"allocator {name!r} got {len(signal_values)} signal values for {n_layers} layers")
    for layer, value in enumerate(signal_values):
        if not math.isfinite(value):
            raise ConfigError(f"the signal of layer {layer} is {value}; it must be finite")
    return [float(value) for value in signal_values]

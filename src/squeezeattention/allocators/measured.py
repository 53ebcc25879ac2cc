"""Budgets from what cutting each layer was measured to cost: the calibrated oracle that signals are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError, PlanError
from ..plan.codec import has_format, read_json, write_json
from .base import Allocation, Allocator

FORMAT, VERSION = "squeezeattention-layer-losses", 1
WAYS = ("greedy", "alone")
_WHAT = "record of measured losses"

#: How much more the next layer of an order gets: so much that it is full before the one after it gets anything.
_STEEP = 1000.0


def is_measured(path: str | Path) -> bool:
    """Whether a file says that it holds measured losses; ``False`` if it cannot be read."""
    return has_format(path, FORMAT)


@dataclass(frozen=True)
class Measured(Allocator):
    """Budgets from measured losses, found by :func:`squeezeattention.oracle.measure_layers` (``squeeze oracle``).

    ``by="greedy"`` fills whole layers, one after another, last cut first; ``by="alone"`` gives shares in
    proportion to the loss when that layer alone is cut. Every layer keeps ``floor`` tokens as far as the average
    budget allows. Raises :class:`ConfigError` for losses and orders that do not fit together.
    """

    name: ClassVar[str] = "measured"
    needs_signal: ClassVar[bool] = False

    alone: tuple[float, ...]
    """Per layer: nats a reply token that cutting this layer alone adds to the full cache's loss."""
    order: tuple[int, ...]
    """Layers, the one that is cut first and costs least at the beginning."""
    by: str = "greedy"
    floor: int = 16
    setting: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was measured, and the losses in detail: JSON values, for the record."""

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise ConfigError(f'budgets follow measured losses "greedy" or "alone", not {self.by!r}')
        if isinstance(self.floor, bool) or not isinstance(self.floor, int) or self.floor < 1:
            raise ConfigError(f"floor must be a whole number of at least 1 token, got {self.floor!r}")
        if not self.alone or not all(map(math.isfinite, self.alone)):
            raise ConfigError("measured losses need one finite number per layer")
        if sorted(self.order) != list(range(len(self.alone))):
            raise ConfigError(f"the order of {len(self.alone)} layers must name each of them once, got {self.order}")

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        if n_layers != len(self.alone):
            raise PlanError(f"the losses of {len(self.alone)} layers were measured, this model has {n_layers}")
        if self.by == "greedy":
            weights = [_STEEP ** (self.order.index(layer) - n_layers) for layer in range(n_layers)]
        else:
            weights = [max(0.0, loss) for loss in self.alone]
        mean = math.fsum(weights) / n_layers
        if mean <= 0:
            return Allocation((1.0,) * n_layers, (1,) * n_layers, ("cutting no layer cost anything: uniform budgets",))
        return Allocation(tuple(weight / mean for weight in weights), (1,) * n_layers, floor=self.floor)

    def save(self, path: str | Path) -> None:
        """Write a JSON file; raises :class:`PlanError` if that is not possible."""
        write_json(path, {"format": FORMAT, "version": VERSION, **asdict(self)}, what=_WHAT)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Measured:
        """From :meth:`save`; ``options`` (``by``, ``floor``) win over those of the file. Raises :class:`PlanError`."""
        data = read_json(path, what=_WHAT)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT or data.pop("version", None) != VERSION:
            raise PlanError(f"{path} holds no measured losses of layers (`squeeze oracle` writes them)")
        try:
            alone, order = tuple(map(float, data.pop("alone"))), tuple(map(int, data.pop("order")))
            return cls(alone, order, **{**data, **options})
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{path} holds no measured losses of layers: {error}") from error

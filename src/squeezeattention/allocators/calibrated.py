"""Budgets for the KV heads that look back, as they were found once for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfigError, PlanError
from .base import Allocation
from .probe import Probe

if TYPE_CHECKING:
    from ..calibration import Calibration


@dataclass(frozen=True)
class Calibrated(Probe):
    """As :class:`Probe`, by a calibration of the model instead of a replay of each prompt.

    Budgets are known before a prompt is read, so nothing is measured and layers are cut while it is. Without a
    ``calibration`` the model's own is looked for: beside the model, in the user's cache, among those that come with
    this package (the embedded model, SmolLM2). One of another model is never used: :class:`PlanError`.
    """

    name: ClassVar[str] = "calibrated"
    signal: ClassVar[str] = "cosine"
    needs_signal: ClassVar[bool] = False
    needs_calibration: ClassVar[bool] = True
    calibration: Calibration | None = None

    def for_model(self, model: Any) -> Calibrated:
        from ..calibration import find

        if self.calibration is None:
            return replace(self, calibration=find(model))
        self.calibration.check(model)
        return self

    def allocate(self, signal_values: Sequence[float] | None, n_layers: int) -> Allocation:
        if self.calibration is None:
            raise ConfigError("budgets by calibration need the model's, see Calibrated.for_model")
        needs = self.calibration.needs
        if len(needs) != n_layers:
            raise PlanError(f"the calibration is of {len(needs)} layers, this model has {n_layers}")
        return self.allocate_heads([[1.0 - need for need in layer] for layer in needs], n_layers)

    def __repr__(self) -> str:
        return f"Calibrated(floor={self.floor}, power={self.power}, heads={self.heads!r})"

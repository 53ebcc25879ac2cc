"""A control: the paper's cut on the most important layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .squeeze import Squeeze


@dataclass(frozen=True)
class Inverted(Squeeze):
    """Squeeze's budgets in reverse: the layers that matter most are cut.

    As many layers are cut as in Squeeze, so both spend the same budgets, on opposite layers. Should do worse
    than uniform wherever the signal is right.
    """

    name: ClassVar[str] = "inverted"

    def _assign(self, groups: list[int], values: list[float]) -> list[int]:
        order = sorted(range(len(values)), key=lambda layer: values[layer])
        assigned = [0] * len(groups)
        for layer, mirror in zip(order, reversed(order), strict=True):
            assigned[layer] = groups[mirror]
        return assigned

"""A control: the paper's group sizes on randomly drawn layers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .squeeze import Squeeze


@dataclass(frozen=True)
class Random(Squeeze):
    """Squeeze's budgets, dealt to the layers at random: does it matter *which* layers are cut?

    Deterministic for the same ``seed``, signal and number of layers.
    """

    name: ClassVar[str] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be a whole number, got {self.seed!r}")

    def _assign(self, groups: list[int], values: list[float]) -> list[int]:
        return random.Random(self.seed).sample(groups, len(groups))

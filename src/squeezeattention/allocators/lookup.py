"""This project's rule, and the default: tokens go to the layers that look up single things far back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .proportional import Proportional


@dataclass(frozen=True)
class Lookup(Proportional):
    """Budgets in proportion to the square of a layer's sharpness, measured while the prompt is read.

    Sharpness is large where a query's attention picks few of the tokens that are neither among the first nor among the
    newest 64. Attention that is far but spread counts little, where ``reach`` counts it in full: the layer that
    remembers is set apart from one that averages. Layers that follow it in several steps are still seen, where
    ``focus`` leaves them next to nothing. A quarter of the cache is divided evenly, as in ``reach``.
    """

    name: ClassVar[str] = "lookup"
    signal: ClassVar[str] = "sharpness"
    power: float = 2.0
    floor: int = 16
    hedge: float = 0.25

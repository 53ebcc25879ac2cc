"""This project's earlier rule: tokens go to the layers that read far back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .proportional import Proportional


@dataclass(frozen=True)
class Reach(Proportional):
    """Budgets in proportion to the cube of a layer's far attention mass, measured while the prompt is read.

    Far = outside the first tokens and the newest 64, of a sample of the prompt's queries. A layer that reads
    locally keeps a short window. A quarter of the cache is divided evenly: layers that read locally need more than the
    window when a text simply goes on.
    """

    name: ClassVar[str] = "reach"
    signal: ClassVar[str] = "locality"
    power: float = 3.0
    floor: int = 16
    hedge: float = 0.25

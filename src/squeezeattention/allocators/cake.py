"""CAKE's budgets: tokens go to layers whose attention is spread and changes from query to query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .proportional import Proportional


@dataclass(frozen=True)
class Cake(Proportional):
    """CAKE (arXiv 2503.12491): budgets in proportion to the layer preference that the signal measures.

    The paper keeps its window of the newest 32 tokens on top of a layer's part; here it is a floor under it, as
    far as a quarter of the average budget pays for it. Only the budgets: the paper's choice of tokens (mean and
    variance of attention) is not part of this, nor is its cascade, since the prompt is held until it is planned.
    """

    name: ClassVar[str] = "cake"
    signal: ClassVar[str] = "preference"
    floor: int = 32

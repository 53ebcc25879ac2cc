"""This project's other rule: tokens go to the few layers that search the whole text, and do it anew for each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .proportional import Proportional


@dataclass(frozen=True)
class Focus(Proportional):
    """Budgets in proportion to the sixth power of CAKE's layer preference (arXiv 2503.12491).

    The preference is large where the newest queries' attention is spread over the text and moves from query to query.
    CAKE divides in proportion to it. Its sixth power names the layers that look things up, on noise as on code, where
    attention that is merely far (``reach``) also names layers that look at everything alike. What is left for the
    others is short: where a text simply goes on, they miss it.
    """

    name: ClassVar[str] = "focus"
    signal: ClassVar[str] = "preference"
    power: float = 6.0
    floor: int = 16
    hedge: float = 0.15

"""What is one for all rows of a batch, where all agree, and one for each where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def by_row(values: Sequence[T], rows: int) -> list[T]:
    """One for each of ``rows`` rows, of one for each or one for all."""
    return list(values) * rows if len(values) == 1 else list(values)

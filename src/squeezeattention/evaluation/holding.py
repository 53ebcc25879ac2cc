"""What a cache holds, whatever kind of cache it is."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import SqueezeCache


class Holding(NamedTuple):
    """Bytes that one sequence takes, measured from the tensors."""

    bytes: int = 0
    """Keys and values."""
    full_bytes: int = 0
    """What a full cache holds at the same point."""
    index_bytes: int = 0
    """Positions and scores: what the method itself needs."""


def holding_of(cache: Any, rows: int = 1) -> Holding:
    """Of a cache of ``rows`` sequences, each one's part.

    A windowed layer of transformers shows the newest part of a longer tensor: only that part counts, which
    is to the full cache's advantage.
    """
    if isinstance(cache, SqueezeCache):
        memory = cache.memory()
        return Holding(memory.bytes // rows, memory.full_bytes // rows, memory.index_bytes // rows)
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // rows
    return Holding(size, size, 0)

"""How many bytes a cache holds: measured from the storages, never from the configured budget."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerMemory:
    """One layer, all sequences of the batch."""

    tokens: int
    """Token slots in use (the longest row)."""
    bytes: int
    """Key and value storages."""
    index_bytes: int
    """Positions, scores and the queries that scorers keep: what the method itself needs."""
    full_bytes: int
    """What a full cache would hold here (a native sliding window bounds it)."""


@dataclass(frozen=True)
class MemoryReport:
    """The whole cache, all sequences of the batch; bytes of keys and values unless said otherwise."""

    layers: tuple[LayerMemory, ...]
    peak_bytes: int
    """Most that was held at once since the cache was made or reset (the prompt before it was cut)."""

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def per_layer(self) -> list[int]:
        """Bytes of each layer."""
        return [layer.bytes for layer in self.layers]

    @property
    def index_bytes(self) -> int:
        return sum(layer.index_bytes for layer in self.layers)

    @property
    def full_bytes(self) -> int:
        return sum(layer.full_bytes for layer in self.layers)

    @property
    def saved(self) -> float:
        """Share of the full cache's bytes that is not held, 0 before the first prompt.

        Below 0 while a text is shorter than its budget where room is made ahead: in compiled steps, and where
        KV heads or rows keep different numbers of tokens.
        """
        return 1 - self.bytes / self.full_bytes if self.full_bytes else 0.0

    def __str__(self) -> str:
        gain = f"{self.saved:.0%} saved" if self.saved > 0 else "nothing saved, the text fits into the budget"
        return (
            f"{_readable(self.bytes)} held (+ {_readable(self.index_bytes)} of positions and scores), "
            f"peak {_readable(self.peak_bytes)}, a full cache holds {_readable(self.full_bytes)}: "
            f"{gain}"
        )


def _readable(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"

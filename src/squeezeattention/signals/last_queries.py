"""Signals that look at the last queries of a prompt: where it reads while it is about to be answered."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import CacheStateError, ConfigError
from .base import AttentionSample, Signal
from .sampled import BLOCK_ELEMENTS, Rows


@dataclass(frozen=True)
class Tail:
    """The last queries of a layer, kept until the next chunk: it may push some of them out of the window."""

    queries: torch.Tensor
    """[B, Hq, R, D]."""
    positions: torch.Tensor
    """[B, R] int64, -1 = padding."""

    def blocks(self, sample: AttentionSample) -> Iterator[Rows]:
        """Their attention over all keys that ``sample`` has, some queries at a time."""
        batch, heads = self.queries.shape[:2]
        most = max(1, BLOCK_ELEMENTS // (batch * heads * sample.keys.shape[2]))
        parts = zip(self.queries.split(most, dim=2), self.positions.split(most, dim=1), strict=True)
        for queries, positions in parts:
            probabilities, _ = sample.probabilities_of(queries, positions)
            yield Rows.of(sample, probabilities, positions)

    def before(self, sample: AttentionSample) -> torch.Tensor:
        """[B, H or 1, N] bool: keys older than the first of these queries."""
        real = self.positions >= 0
        first = self.positions.masked_fill(~real, torch.iinfo(torch.int64).max).amin(dim=1)
        keys = sample.key_positions
        return (keys >= 0) & (keys < torch.where(real.any(dim=1), first, 0)[:, None, None])


class LastQueries(Signal):
    """What the last ``window`` queries of the prompt read, measured layer by layer.

    A prompt in chunks gives what it gives whole. Which queries are the last is known at the end only, so each
    chunk's last queries are kept ([B, Hq, window, D] a layer) and looked at again, with the keys that came in
    between, when the next chunk has fewer than ``window`` tokens of its own; the latest measurement stands.
    :meth:`end_turn` drops what was kept: a later turn is judged by its own last queries.
    A window that is no whole number of at least 1 is a :class:`ConfigError`.
    """

    wants_attention = True

    def __init__(self, window: int = 32) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ConfigError(f"window must be a whole number of at least 1 query, got {window!r}")
        self.window = window

    @abstractmethod
    def measure(self, sample: AttentionSample, tail: Tail) -> torch.Tensor:
        """What ``tail`` shows of one layer, on its device, for each row."""

    @abstractmethod
    def combine(self, measured: list[torch.Tensor]) -> list[list[float]]:
        """Values as in :meth:`values`, from what :meth:`measure` gave for each layer. May synchronise once."""

    def start(self, n_layers: int) -> None:
        self._tails: list[Tail | None] = [None] * n_layers
        self._measured: list[torch.Tensor | None] = [None] * n_layers

    def select_rows(self, rows: torch.Tensor) -> None:
        for layer, tail in enumerate(self._tails):
            if tail is not None:
                index = rows.to(tail.positions.device)
                self._tails[layer] = Tail(tail.queries[index], tail.positions[index])

    def see_attention(self, layer: int, sample: AttentionSample) -> None:
        batch = sample.queries.shape[0]
        queries = sample.queries[:, :, -self.window :].detach()
        positions = sample.query_positions[:, -self.window :].expand(batch, -1)
        old = self._tails[layer]
        if old is not None and queries.shape[2] < self.window:
            queries = torch.cat([old.queries.to(queries), queries], dim=2)[:, :, -self.window :]
            positions = torch.cat([old.positions.to(positions), positions], dim=1)[:, -self.window :]
        # A copy: a slice would hold on to the whole chunk.
        self._tails[layer] = tail = Tail(queries.clone(), positions.clone())
        self._measured[layer] = self.measure(sample, tail)

    def values(self) -> list[list[float]]:
        measured = [found for found in self._measured if found is not None]
        if not measured or len(measured) < len(self._measured):
            missing = [layer for layer, found in enumerate(self._measured) if found is None]
            raise CacheStateError(f"no attention was seen in layers {missing}: they did not run")
        return self.combine(measured)

    def end_turn(self) -> None:
        self.start(len(self._measured))

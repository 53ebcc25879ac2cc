"""Several signals in one reading of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import ConfigError
from .base import AttentionSample, Signal


class Together(Signal):
    """Signals that watch the same prompt. The first decides; each of the others is there for a copy of the cache that
    goes by it (:meth:`SqueezeCache.twin`), so that a prompt need not be read for each.

    Raises :class:`ConfigError` for none, and for two of one name.
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        names = [signal.name for signal in signals]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"signals that watch together must be one or more of different names, got {names}")
        self._parts = tuple(signals)
        self.name = signals[0].name  # type: ignore[misc]
        self.label = signals[0].label  # type: ignore[misc]
        self.wants_hidden = any(signal.wants_hidden for signal in signals)  # type: ignore[misc]
        self.wants_attention = any(signal.wants_attention for signal in signals)  # type: ignore[misc]
        self.wants_scores = signals[0].wants_scores  # type: ignore[misc]  # asked for when budgets are made

    @property
    def parts(self) -> tuple[Signal, ...]:
        return self._parts

    def start(self, n_layers: int) -> None:
        for signal in self._parts:
            signal.start(n_layers)

    def see_hidden(self, layer: int, before: torch.Tensor, after: torch.Tensor, real: torch.Tensor | None) -> None:
        for signal in self._parts:
            if signal.wants_hidden:
                signal.see_hidden(layer, before, after, real)

    def see_attention(self, layer: int, sample: AttentionSample) -> None:
        for signal in self._parts:
            if signal.wants_attention:
                signal.see_attention(layer, sample)

    def see_scores(self, layer: int, scores: torch.Tensor, positions: torch.Tensor) -> None:
        self._parts[0].see_scores(layer, scores, positions)

    def see_budget(self, tokens: Sequence[int]) -> None:
        self._parts[0].see_budget(tokens)

    def select_rows(self, rows: torch.Tensor) -> None:
        for signal in self._parts:
            signal.select_rows(rows)

    def end_turn(self) -> None:
        for signal in self._parts:
            signal.end_turn()

    def values(self) -> list[list[float]]:
        return self._parts[0].values()

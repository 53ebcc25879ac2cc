"""Which KV heads look back: what each needs of the cache, found by letting the model repeat some of its own prompt."""

from __future__ import annotations

import torch

from ..errors import CacheStateError, ConfigError
from ..plan.budget import is_real
from .base import Signal


class Replay(Signal):
    """Need of each KV head when pieces of the prompt are read again behind it (KVzip's question, asked of a sample).

    While a text is read, the heads that would look things up in it are mostly asleep. When a piece of it comes again,
    they wake: each of its tokens is found at its first place by the heads that retrieve. KVzip (2505.23416) replays the
    whole text to rank its tokens; ``pieces`` of ``length`` tokens, evenly spread over the text, are enough to rank the
    heads. Each piece is led in by ``lead`` tokens that came before it. ``until``: the share of the text, from its
    beginning, that pieces are taken from: those near its end are found by heads, too, that look no further than there.

    A head's need is the share of the replayed tokens whose first place it looks at with more attention than a
    threshold, which ``share`` of all heads' and layers' replayed tokens pass; of two with the same share the one that
    looks harder needs more. A text shorter than a piece and its lead says nothing: all heads are alike, or as they were
    in an earlier turn. Needs of several turns, or of several pieces of a bounded prefill, are averaged: they are the
    model's more than the text's.

    Raises :class:`ConfigError` for settings that cannot work.
    """

    name = "replay"
    label = "1 - replay"

    def __init__(
        self, pieces: int = 4, length: int = 32, lead: int = 8, share: float = 0.2, until: float = 1.0
    ) -> None:
        for name, value, least in (("pieces", pieces, 1), ("length", length, 1), ("lead", lead, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not is_real(share) or not 0 < share < 1:
            raise ConfigError(f"share must be strictly between 0 and 1, got {share!r}")
        if not is_real(until) or not 0 < until <= 1:
            raise ConfigError(f"until must be above 0 and at most 1, got {until!r}")
        self.pieces, self.length, self.lead, self.share = pieces, length, lead, float(share)
        self.until = float(until)

    def starts(self, tokens: int) -> list[int]:
        """Where the pieces of a text begin, their lead not counted; none if it is too short."""
        if tokens < self.lead + self.length:
            return []
        room = max(0, int(tokens * self.until) - self.lead - self.length)
        return [self.lead + int(room * (piece + 0.5) / self.pieces) for piece in range(self.pieces)]

    def start(self, n_layers: int) -> None:
        self._received: list[torch.Tensor | None] = [None] * n_layers
        self._told = torch.zeros(0, dtype=torch.bool)
        self._sums: list[list[list[float]]] = []  # by row, layer and head, over ...
        self._counts: list[int] = []  # ... so many replays

    @property
    def knows(self) -> bool:
        """Whether something was replayed before."""
        return bool(self._sums)

    def see_replay(self, layer: int, received: torch.Tensor, told: torch.Tensor) -> None:
        """Attention that the replayed tokens' first places received: fp32 ``[B, H, k, c]``; ``told`` bool ``[B]``: rows
        whose text was long enough."""
        self._received[layer], self._told = received.flatten(2), told

    def select_rows(self, rows: torch.Tensor) -> None:
        if self._sums:
            self._sums = [self._sums[row] for row in rows.tolist()]
            self._counts = [self._counts[row] for row in rows.tolist()]

    def values(self) -> list[list[list[float]]]:  # type: ignore[override]
        """For each row, layer and KV head: 1 - need."""
        received = [found for found in self._received if found is not None]
        if received and len(received) == len(self._received):
            self._add(self._needs(received))
        elif not self._sums:
            raise CacheStateError("nothing was replayed: the layers did not run")
        self._received = [None] * len(self._received)
        return [[[1.0 - need for need in layer] for layer in row] for row in self.needs()]

    def needs(self) -> list[list[list[float]]]:
        """For each row, layer and KV head: its need by all that was replayed so far, from 0 to 1."""
        return [
            [[need / max(1, count) for need in layer] for layer in row]
            for row, count in zip(self._sums, self._counts, strict=True)
        ]

    def _needs(self, received: list[torch.Tensor]) -> list[list[list[float]]]:
        counts = [found.shape[1] for found in received]
        flat = torch.cat([found.to(received[0].device) for found in received], dim=1)  # [B, all heads, k * c]
        columns = flat.flatten(1)
        rank = max(1, int((1 - self.share) * columns.shape[1]))
        threshold = columns.kthvalue(rank, dim=1).values[:, None, None]
        need = (flat > threshold).float().mean(dim=-1) * (1 - _TIE) + flat.mean(dim=-1) * _TIE
        return [
            list(row) for row in zip(*(layer.tolist() for layer in need.double().split(counts, dim=1)), strict=True)
        ]

    def _add(self, needs: list[list[list[float]]]) -> None:
        if not self._sums:
            self._sums = [[[0.0] * len(layer) for layer in row] for row in needs]
            self._counts = [0] * len(needs)
        for row, told in enumerate(self._told.tolist()):
            if told:
                self._counts[row] += 1
                self._sums[row] = [
                    [old + new for old, new in zip(was, now, strict=True)]
                    for was, now in zip(self._sums[row], needs[row], strict=True)
                ]


#: What the amount of attention counts beside the number of tokens that it goes to.
_TIE = 1e-3

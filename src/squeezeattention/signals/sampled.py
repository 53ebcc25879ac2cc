"""Signals that look at where a layer reads: attention of a sample of the prompt's queries."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from dataclasses import dataclass

import torch

from ..errors import CacheStateError
from .base import AttentionSample, Signal

#: Every so many tokens one query is sampled: densely where a short prompt ends, thinly in a long one, so that looking
#: costs a percent or two of a prompt's time whatever its length.
_DENSE, _DENSE_UNTIL, _THIN = 32, 1024, 256
#: Elements of the attention that is looked at together (16 MiB in fp32).
BLOCK_ELEMENTS = 4 * 2**20


@dataclass(frozen=True)
class Rows:
    """Some queries of one layer and their attention."""

    probabilities: torch.Tensor
    """[B, Hq, R, N] fp32; zeros in the rows of padding."""
    values: torch.Tensor
    """[B, H, N, Dv]; H divides Hq."""
    distance: torch.Tensor
    """[B or 1, H or 1, R, N] int64: how many tokens back each key is; negative = in the future, or a hole."""
    key_positions: torch.Tensor
    """[B or 1, H or 1, N] int64, -1 = hole."""
    positions: torch.Tensor
    """[B, R] int64 positions of the queries, -1 = padding."""

    @property
    def visible(self) -> torch.Tensor:
        """[B, R] int64: tokens that each query sees, itself included (a native window not counted)."""
        return self.positions + 1

    def per_query_head(self, mask: torch.Tensor) -> torch.Tensor:
        """A [B or 1, H or 1, R, N] tensor repeated for the query heads that share a key head."""
        heads = self.probabilities.shape[1]
        return mask if mask.shape[1] == 1 else mask.repeat_interleave(heads // mask.shape[1], dim=1)

    def mass(self, chosen: torch.Tensor) -> torch.Tensor:
        """Attention on ``chosen`` keys, bool [B or 1, H or 1, R, N]: fp32 [B, Hq, R]."""
        if chosen.shape[:2] == (1, 1) and self.probabilities.shape[0] == 1:
            # A product reads the probabilities once; heads side by side, since all choose the same keys.
            by_row = self.probabilities[0].transpose(0, 1)
            return torch.bmm(by_row, chosen[0, 0, :, :, None].to(by_row.dtype))[..., 0].T[None]
        return (self.probabilities * self.per_query_head(chosen)).sum(dim=-1)

    @classmethod
    def of(cls, sample: AttentionSample, probabilities: torch.Tensor, positions: torch.Tensor) -> Rows:
        """The rows of a layer whose queries sit at ``positions``, int64 [B or 1, R]."""
        positions = positions.expand(probabilities.shape[0], -1)
        keys = sample.key_positions[..., None, :]
        distance = torch.where(keys >= 0, positions[:, None, :, None] - keys, -1)
        return cls(probabilities, sample.values, distance, sample.key_positions, positions)


class SampledAttention(Signal):
    """Mean *need* of a layer over sampled queries, given as ``1 - need`` to be oriented like the cosine.

    Queries are chosen by their position in the text, so a prompt in chunks gives what it gives whole, and a row of a
    batch what it gives alone. Sums are kept on the layer's device; beside :meth:`values` the only synchronisation is
    one for each forward.
    """

    wants_attention = True

    @abstractmethod
    def need(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Need and weight of each sampled query: fp32 ``[B, R]`` twice; weight 0 = says nothing."""

    def start(self, n_layers: int) -> None:
        self._found: tuple[weakref.ref[torch.Tensor], torch.Tensor] | None = None
        self._sums: list[torch.Tensor | None] = [None] * n_layers  # [2, B]: sum of needs, and of weights
        self._rows = 0

    def see_attention(self, layer: int, sample: AttentionSample) -> None:
        batch, heads = self._rows, _ = sample.queries.shape[:2]
        most = max(1, BLOCK_ELEMENTS // (batch * heads * sample.keys.shape[2]))
        for block in self._columns(sample.query_positions).split(most, dim=1):
            self._add(layer, sample, block.to(sample.queries.device))

    def _columns(self, positions: torch.Tensor) -> torch.Tensor:
        """Columns of the queries to look at, int64 [B or 1, R], -1 = none; found once for all layers of a forward."""
        if self._found is None or self._found[0]() is not positions:
            chosen = is_sampled(positions)
            count = int(chosen.sum(dim=1).max())
            columns = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
            self._found = weakref.ref(positions), torch.where(chosen.gather(1, columns), columns, -1)
        return self._found[1]

    def _add(self, layer: int, sample: AttentionSample, columns: torch.Tensor) -> None:
        if not columns.shape[1]:
            return
        batch, heads, _, width = sample.queries.shape
        absent, columns = columns < 0, columns.clamp(min=0)
        positions = sample.query_positions.expand(len(columns), -1).gather(1, columns).masked_fill(absent, -1)
        if len(columns) == 1:
            queries = sample.queries[:, :, columns[0]]
        else:
            queries = sample.queries.gather(2, columns[:, None, :, None].expand(batch, heads, -1, width))
        probabilities, _ = sample.probabilities_of(queries, positions)
        rows = Rows.of(sample, probabilities, positions)
        need, weight = self.need(rows)
        weight = weight * (rows.positions >= 0)
        pair = torch.stack([(need * weight).sum(dim=1), weight.sum(dim=1)])
        seen = self._sums[layer]
        self._sums[layer] = pair if seen is None else seen + pair

    def select_rows(self, rows: torch.Tensor) -> None:
        self._sums = [None if pair is None else pair[:, rows.to(pair.device)] for pair in self._sums]
        self._rows = len(rows)

    def end_turn(self) -> None:
        self._found = None

    def values(self) -> list[list[float]]:
        if not self._rows:
            raise CacheStateError("no attention was seen: the layers did not run")
        device = next((pair.device for pair in self._sums if pair is not None), torch.device("cpu"))
        nothing = torch.zeros(2, self._rows, device=device)
        pairs = torch.stack([nothing if pair is None else pair.to(device) for pair in self._sums])
        needs = pairs[:, 0] / pairs[:, 1].clamp(min=1e-12)
        values: list[list[float]] = (1.0 - needs.double()).T.tolist()
        return values


def is_sampled(positions: torch.Tensor) -> torch.Tensor:
    """Which queries are looked at, by their position (-1 = padding, never): bool of the same shape."""
    thin = (positions + 1) % _THIN == 0
    return torch.where(positions < _DENSE_UNTIL, (positions + 1) % _DENSE == 0, thin) & (positions >= 0)


def layer_mean(needs: torch.Tensor) -> torch.Tensor:
    """[B, Hq, R] -> [B, R]: mean over the heads."""
    return needs.mean(dim=1)

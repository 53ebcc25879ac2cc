"""What a layer keeps of a text's queries, for scorers that look at them."""

from __future__ import annotations

import torch

from ..attention.turning import Turning

#: Queries that statistics leave out at the text's beginning, and tokens whose queries are summed at once.
_FIRST, _TOKENS = 4, 2048
#: Positions to come that queries are turned to, on average.
_AHEAD = 512


class NewestQueries:
    """The newest ``most`` of each row.

    The query at position p lies in column ``p % most``, so that rows of different length and steps of one token need
    not know of each other; what has no place (padding) goes to a column behind.
    """

    def __init__(self, most: int, like: torch.Tensor) -> None:
        """``like``: queries ``[B, Hq, *, D]``."""
        batch, heads, _, width = like.shape
        self._most = most
        self._queries = like.new_zeros(batch, heads, most + 1, width)
        self._positions = torch.full((batch, most + 1), -1, device=like.device)

    def see(self, query: torch.Tensor, positions: torch.Tensor) -> None:
        """Queries ``[B, Hq, q, D]`` at ``positions`` int64 ``[B or 1, q]``, -1 = padding."""
        positions = positions.expand(len(query), -1)
        if query.shape[2] > self._most:  # padding may lie between a row's tokens
            positions, newest = positions.topk(self._most, dim=1)
            query = query.gather(2, newest[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        if query.dtype != self._queries.dtype:  # autocast has begun or ended
            self._queries = self._queries.to(torch.promote_types(query.dtype, self._queries.dtype))
            query = query.to(self._queries.dtype)
        column = torch.where(positions >= 0, positions % self._most, self._most)
        self._queries.scatter_(2, column[:, None, :, None].expand_as(query), query)
        self._positions.scatter_(1, column, positions)

    @property
    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries ``[B, Hq, most, D]`` and their positions ``[B, most]``, -1 = none."""
        return self._queries[:, :, :-1], self._positions[:, :-1]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that is kept."""
        return self._queries, self._positions

    def select_rows(self, rows: torch.Tensor) -> None:
        rows = rows.to(self._queries.device)
        self._queries, self._positions = (one.index_select(0, rows) for one in self.tensors())


class QueryStatistics:
    """Count, sum and sum of outer products of all queries but the first, as they were before rotary embedding."""

    def __init__(self, turning: Turning, like: torch.Tensor) -> None:
        batch, heads, _, width = like.shape
        self._turning = turning
        self._count = torch.zeros(batch, device=like.device)
        self._sum = torch.zeros(batch, heads, width, device=like.device)
        self._outer = torch.zeros(batch, heads, width, width, device=like.device)

    def see(self, query: torch.Tensor, positions: torch.Tensor) -> None:
        """Queries ``[B, Hq, q, D]`` at ``positions`` int64 ``[B or 1, q]``, -1 = padding."""
        for some, at in zip(query.split(_TOKENS, dim=2), positions.split(_TOKENS, dim=1), strict=True):
            before, counts = self._turning.back(some, at), (at >= _FIRST).float()
            counted = before * counts[:, None, :, None]
            self._count.add_(counts.sum(dim=1))
            self._sum.add_(counted.sum(dim=2))
            self._outer.add_(counted.transpose(-1, -2) @ before)

    def ahead(self, newest: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``[B, H, G, D]`` and covariance ``[B, H, G, D, D]`` at the mean of the positions after ``newest`` int64
        ``[B or 1]``, for so many KV heads."""
        count = self._count.clamp(min=1.0)[:, None, None]
        mean = self._sum / count
        covariance = self._outer / count[..., None] - mean[..., None] * mean[..., None, :]
        at = newest[:, None] + torch.arange(1, _AHEAD + 1, device=newest.device)
        mean = self._turning.ahead(mean[:, :, None], at)[:, :, 0]
        for _ in range(2):  # rows, then columns, each row of the matrix a state of its own
            turned = self._turning.ahead(covariance.flatten(1, 2)[:, :, None], at)
            covariance = turned[:, :, 0].unflatten(1, covariance.shape[1:3]).transpose(-1, -2)
        return mean.unflatten(1, (heads, -1)), covariance.unflatten(1, (heads, -1))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that is kept."""
        return self._count, self._sum, self._outer

    def select_rows(self, rows: torch.Tensor) -> None:
        rows = rows.to(self._count.device)
        self._count, self._sum, self._outer = (one.index_select(0, rows) for one in self.tensors())

"""Which stored token each query may see, from positions alone, a block of queries at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Visibility:
    """Causal order, holes, padding and a native sliding window, never as one [T, T] matrix.

    A query at position ``i`` sees the token at position ``j`` if ``0 <= j <= i`` and, in a windowed layer,
    ``j > i - window``. Padding queries (position -1) see nothing.
    """

    queries: torch.Tensor
    """[B or 1, q] int64 positions, -1 = padding."""
    tokens: torch.Tensor
    """[B or 1, H or 1, N] int64 positions, -1 = hole."""
    window: int | None
    fresh: bool
    """True if the tokens are the queries themselves: nothing was stored before."""
    ragged: bool
    """True if there may be padding queries or holes among the tokens."""
    ordered: bool = False
    """True if what was stored before is older than all queries, without holes, and they come last, in order."""

    @property
    def is_causal(self) -> bool:
        """Plain causal attention over the queries' own tokens: the fastest kernels apply."""
        return self.fresh and not self.ragged and (self.window is None or self.queries.shape[1] <= self.window)

    @property
    def is_staircase(self) -> bool:
        """Each query sees all columns but those of the queries behind it, which are the last ones."""
        return self.is_causal or (self.ordered and not self.ragged and self.window is None)

    def block(self, start: int, stop: int, columns: int | None = None) -> torch.Tensor:
        """Mask of queries ``start:stop``: bool ``[B or 1, H or 1, stop - start, columns or N]``."""
        query = self.queries[:, None, start:stop, None]
        token = self.tokens[..., None, :columns]
        seen = (token >= 0) & (token <= query)
        if self.window is not None:
            seen &= token > query - self.window
        return seen

    def of(self, row: int, head: int) -> Visibility:
        """What one row's one head has to do with."""
        row_q, row_t = (row if len(rows) > 1 else 0 for rows in (self.queries, self.tokens))
        head = head if self.tokens.shape[1] > 1 else 0
        tokens = self.tokens[row_t : row_t + 1, head : head + 1]
        return replace(self, queries=self.queries[row_q : row_q + 1], tokens=tokens)

    def places(self) -> list[slice | torch.Tensor | None]:
        """The columns of each row's real queries, ``None`` if it has none: a slice behind left padding."""
        real = self.queries >= 0
        ends = torch.stack([real.byte().argmax(dim=1), real.sum(dim=1)], dim=1).tolist()
        length = real.shape[1]
        return [
            None if not count else slice(first, None) if first + count == length else real[row].nonzero().flatten()
            for row, (first, count) in enumerate(ends)
        ]

    def rows(self, row: int, place: slice | torch.Tensor) -> Visibility:
        """What the real queries of one row, at these columns, have to do with (fresh tokens only)."""
        queries = self.queries[row : row + 1, place]
        return Visibility(queries, queries[:, None], self.window, fresh=True, ragged=False)

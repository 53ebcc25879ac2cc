"""What a layer keeps for a policy that scores its tokens, and when it does so."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ..attention.core import Scoring, probabilities_of
from ..attention.visibility import Visibility
from ..policies import LayerView, Scored
from ..policies.scored import SURE, scores_of
from .ragged import RaggedStore
from .store import LayerStore


class TokenScorer:
    """One layer's: its newest queries, if the policy looks at them, and what was learned from a replay.

    The query at position p lies in column ``p % w`` of w, so that rows of different length and steps of one token need
    not know of each other; what has no place (padding) goes to a column behind.
    """

    def __init__(self, policy: Scored, window: int | None) -> None:
        self.policy, self.window = policy, window
        self.fitted: torch.Tensor | None = None
        self.queries: torch.Tensor | None = None
        self.query_positions: torch.Tensor | None = None
        self._scoring: Scoring | None = None
        self._expanded: torch.Tensor | None = None
        self._scored_at = -1  # columns seen when all was scored last

    def see_queries(self, query: torch.Tensor, positions: torch.Tensor, scoring: Scoring) -> None:
        """Queries ``[B, Hq, q, D]`` at ``positions`` int64 ``[B or 1, q]``, -1 = padding."""
        most = self.policy.last_queries
        if not most:
            return
        batch, heads, _, width = query.shape
        query, positions = query.detach()[:, :, -most:], positions[:, -most:].expand(batch, -1)
        if self.queries is None or self.query_positions is None:
            self.queries = query.new_zeros(batch, heads, most + 1, width)
            self.query_positions = positions.new_full((batch, most + 1), -1)
        column = torch.where(positions >= 0, positions % most, most)
        self.queries.scatter_(2, column[:, None, :, None].expand_as(query), query)
        self.query_positions.scatter_(1, column, positions)
        self._scoring = scoring

    def see_expanded(self, keys: torch.Tensor, store: LayerStore | RaggedStore) -> None:
        """``keys`` ``[B, H', N, D]`` that the model has made of what is cached (MLA): there is no other moment to look
        at them, so the newest queries' attention over them is taken now."""
        if self.policy.last_queries:
            with torch.no_grad():
                self._expanded = self._attention(keys, store.used_positions(), store.shape[1])

    def select_rows(self, rows: torch.Tensor) -> None:
        if self.queries is not None and self.query_positions is not None:
            self.queries = self.queries.index_select(0, rows.to(self.queries.device))
            self.query_positions = self.query_positions.index_select(0, rows.to(self.query_positions.device))
        if self.fitted is not None:
            self.fitted = self.fitted.index_select(0, rows.to(self.fitted.device))

    def rescore(self, store: LayerStore | RaggedStore, seen: int) -> None:
        """Score all that is held after ``seen`` columns, if that was not done yet."""
        if store.is_empty or self._scored_at == seen:
            return
        with torch.no_grad():
            view = self._view(*store.view(), store.used_positions())
            store.set_scores(scores_of(self.policy, view))
        self._scored_at, self._expanded = seen, None

    def is_due(self, seen: int) -> bool:
        """Whether it is time to score everything anew, while text is generated."""
        return self.policy.every is not None and seen - self._scored_at >= self.policy.every

    def of_new(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Scores ``[B, H, 1]`` of new tokens ``[B, H, 1, D]`` at ``positions`` int64 ``[B or 1, 1]``."""
        with torch.no_grad():
            own = self.policy.score_new(self._view(keys, values, positions[:, None]))
        if own is None:
            return keys.new_full((*keys.shape[:2], 1), SURE, dtype=torch.float32)
        return own.float().masked_fill(positions[:, None] < self.policy.sinks, SURE)

    def fit(
        self, store: LayerStore | RaggedStore, columns: torch.Tensor, received: torch.Tensor, told: torch.Tensor
    ) -> None:
        """Learn from a replay: tokens at positions ``columns`` int64 ``[B, n]`` received fp32 ``[B, H, n]``, in the
        rows ``told`` bool ``[B]``."""
        keys, values = store.view()
        held = store.used_positions()
        at = held[:, :, None, :] == columns.to(held.device)[:, None, :, None]  # [B or 1, H or 1, n, N]
        slot = at.to(torch.int8).argmax(dim=-1).expand(*store.shape, -1)[..., None]
        keys, values = (one.gather(2, slot.expand(-1, -1, -1, one.shape[-1])) for one in (keys, values))
        told = told.to(keys.device)
        with torch.no_grad():
            fitted = self.policy.fit(self._view(keys, values, columns[:, None].to(held.device)), told, received)
        if self.fitted is not None:  # what was learned in an earlier turn stays where this one says nothing
            fitted = torch.where(told.view(-1, *[1] * (fitted.ndim - 1)), fitted, self.fitted)
        self.fitted = fitted
        self._scored_at = -1

    def _view(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> LayerView:
        attention: Callable[[], torch.Tensor] | None = None
        if self._expanded is not None:
            expanded = self._expanded
            attention = lambda: expanded  # noqa: E731
        elif self.queries is not None:
            attention = functools.partial(self._attention, keys, positions, keys.shape[1])
        return LayerView(keys, values, positions, attention, self.fitted)

    def _attention(self, keys: torch.Tensor, positions: torch.Tensor, heads: int) -> torch.Tensor:
        if self.queries is None or self.query_positions is None or self._scoring is None:
            raise RuntimeError("no queries were kept")
        queries, at = self.queries[:, :, :-1], self.query_positions[:, :-1]
        visibility = Visibility(at, positions, self.window, fresh=False, ragged=True)
        found, _ = probabilities_of(keys, visibility, self._scoring, queries, at)
        return found.unflatten(1, (heads, -1))

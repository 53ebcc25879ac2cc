"""What a layer keeps for a policy that scores its tokens, and when it does so."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn import functional

from ..attention.core import Scoring, probabilities_of
from ..attention.visibility import Visibility
from ..policies import LayerView, Scored
from ..policies.scored import SURE, scores_of
from .parts import Parts
from .queries import NewestQueries, QueryStatistics
from .ragged import RaggedStore
from .store import LayerStore, mark_static, storage_bytes, without_graph


class TokenScorer:
    """One layer's: its queries, if the policy looks at them, and what came of a replay."""

    def __init__(self, policy: Scored, window: int | None, parts: Parts) -> None:
        self.policy, self.window, self.parts = policy, window, parts
        self.fitted: torch.Tensor | None = None
        self.newest: NewestQueries | None = None
        self.statistics: QueryStatistics | None = None
        self._received: torch.Tensor | None = None
        self._scoring: Scoring | None = None
        self._expanded: tuple[torch.Tensor, torch.Tensor] | None = None
        self._scored_at = -1  # columns seen when all was scored last
        self._heads_agree = False  # all KV heads hold the same tokens in the same places

    def see_queries(self, query: torch.Tensor, positions: torch.Tensor, scoring: Scoring) -> None:
        """Queries ``[B, Hq, q, D]`` at ``positions`` int64 ``[B or 1, q]``, -1 = padding."""
        query, self._scoring = without_graph(query), scoring
        if self.policy.last_queries:
            if self.newest is None:
                self.newest = NewestQueries(self.policy.last_queries, query)
            self.newest.see(query, positions)
        if self.parts.turning is not None:
            if self.statistics is None:
                self.statistics = QueryStatistics(self.parts.turning, query)
            self.statistics.see(query, positions)

    def see_expanded(self, keys: torch.Tensor, store: LayerStore | RaggedStore) -> None:
        """``keys`` ``[B, H', N, D]`` that the model has made of what is cached (MLA): there is no other moment to look
        at them, so the newest queries' attention over them is taken now."""
        if self.policy.last_queries:
            with torch.no_grad():
                self._expanded = self._attention(keys, store.used_positions(), store.shape[1])

    def select_rows(self, rows: torch.Tensor) -> None:
        for kept in (self.newest, self.statistics):
            if kept is not None:
                kept.select_rows(rows)
        if self.fitted is not None:
            self.fitted = self.fitted.index_select(0, rows.to(self.fitted.device))

    def settle(self) -> None:
        """From now on compiled steps write what is kept."""
        for part in (self.newest, self.statistics):
            for tensor in () if part is None else part.tensors():
                mark_static(tensor)

    def kept_bytes(self) -> int:
        """Bytes of what is kept beside the tokens' scores, measured."""
        kept = [tensor for part in (self.newest, self.statistics) if part is not None for tensor in part.tensors()]
        return storage_bytes(self.fitted, *kept)

    # ---------------------------------------------------------------- scores

    def rescore(self, store: LayerStore | RaggedStore, seen: int) -> None:
        """Score all that is held after ``seen`` columns, if that was not done yet."""
        if store.is_empty or self._scored_at == seen:
            return
        with torch.no_grad():
            view = self._view(*store.view(), store.used_positions())
            store.set_scores(scores_of(self.policy, view))
        self._scored_at, self._expanded, self._received = seen, None, None

    def is_due(self, seen: int) -> bool:
        """Whether it is time to score everything anew, while text is generated."""
        return self.policy.every is not None and seen - self._scored_at >= self.policy.every

    def of_new(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, *, sinks: bool
    ) -> float | torch.Tensor:
        """Scores ``[B, H, 1]`` of new tokens ``[B, H, 1, D]`` at ``positions`` int64 ``[B or 1, 1]``, or one for all;
        ``sinks``: some of them may be sinks."""
        if type(self.policy).score_new is Scored.score_new:
            return SURE
        with torch.no_grad():
            own = self.policy.score_new(self._view(keys, values, positions[:, None]))
        if own is None:
            return SURE
        return own.float().masked_fill(positions[:, None] < self.policy.sinks, SURE) if sinks else own.float()

    def note_heads(self, store: LayerStore | RaggedStore) -> None:
        """After a cut: find out whether KV heads hold the same, which scores that are one for all keep so."""
        if self.policy.follows and not store.is_empty:
            held = store.used_positions()
            # Heads that keep different numbers may hold the same of a short prompt, but not for long.
            equal = not isinstance(store, RaggedStore) or store.heads_are_equal
            self._heads_agree = equal and bool((held == held[:, :1]).all())

    def follow(self, store: LayerStore | RaggedStore, received: torch.Tensor) -> None:
        """Scores from a decode step's attention, fp32 ``[B, H, N]``, mean over the query heads of a group."""
        held = store.used_positions()
        with torch.no_grad():
            scores = self.policy.follow(received, held[:, :1] if self._heads_agree else held)
            store.set_scores(scores.masked_fill((held >= 0) & (held < self.policy.sinks), SURE))

    # ---------------------------------------------------------------- replays

    def see_received(
        self, store: LayerStore | RaggedStore, columns: torch.Tensor, received: torch.Tensor, begin: torch.Tensor
    ) -> None:
        """Tokens of what is new, from positions ``begin`` int64 ``[B]`` on, have been repeated: those at ``columns``
        int64 ``[B, n]``, ascending (-1 = none, behind them), received fp32 ``[B, H, n]``."""
        held, columns = store.used_positions(), columns.to(received.device)
        with torch.no_grad():
            self._fit(store, columns, received)
            heads = held.shape[1]
            order = columns.masked_fill(columns < 0, torch.iinfo(torch.int64).max)[:, None].expand(-1, heads, -1)
            index = torch.searchsorted(order.contiguous(), held.expand(len(order), -1, -1).contiguous())
            index = index.clamp(max=columns.shape[1] - 1)
            told = (order.gather(-1, index) == held) & (held >= 0)
            found, before = received.gather(-1, index.expand(*store.shape, -1)), store.used_scores()
            if self._received is not None:  # of this very prompt, so far
                before = functional.pad(self._received, (0, store.used - self._received.shape[-1]))
            new = held >= begin.to(held.device)[:, None, None]
            other = torch.where(new, -1.0, torch.zeros_like(found) if before is None else before)
            self._received = torch.where(told, found, other)
        self._scored_at = -1

    def _fit(self, store: LayerStore | RaggedStore, columns: torch.Tensor, received: torch.Tensor) -> None:
        """Let the policy learn from the rows where enough was repeated; of others it keeps what it knows."""
        if self.policy.fits_from is None:
            return
        enough = (columns >= 0).sum(dim=1) >= self.policy.fits_from
        if not enough.any():
            return
        keys, values = store.view()
        held = store.used_positions()
        ordered, order = held.expand(len(columns), -1, -1).sort(dim=-1)
        place = torch.searchsorted(ordered, columns[:, None].expand(-1, held.shape[1], -1).contiguous())
        slot = order.gather(-1, place.clamp(max=order.shape[-1] - 1)).expand(*store.shape, -1)[..., None]
        keys, values = (one.gather(2, slot.expand(-1, -1, -1, one.shape[-1])) for one in (keys, values))
        fitted = self.policy.fit(self._view(keys, values, columns[:, None]), received)
        enough = enough.view(-1, *[1] * (fitted.ndim - 1))
        self.fitted = torch.where(enough, fitted, torch.zeros_like(fitted) if self.fitted is None else self.fitted)

    # ------------------------------------------------------------------- view

    def _view(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> LayerView:
        attention: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
        future: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
        if self._expanded is not None:
            expanded = self._expanded
            attention = lambda: expanded  # noqa: E731
        elif self.newest is not None:
            attention = functools.partial(self._attention, keys, positions, keys.shape[1])
        if self.statistics is not None:
            newest = positions.amax(dim=(1, 2))
            future = functools.partial(self.statistics.ahead, newest, keys.shape[1])
        return LayerView(
            keys, values, positions, attention, self.fitted, self._received, self.parts.output, future,
            1.0 if self._scoring is None else self._scoring.scale,
        )  # fmt: skip

    def _attention(self, keys: torch.Tensor, positions: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.newest is None or self._scoring is None:
            raise RuntimeError("no queries were kept")
        queries, at = self.newest.held
        queries = queries.to(keys.dtype)
        visibility = Visibility(at, positions, self.window, fresh=False, ragged=True)
        found, total = probabilities_of(keys, visibility, self._scoring, queries, at)
        return found.unflatten(1, (heads, -1)), total.unflatten(1, (heads, -1))

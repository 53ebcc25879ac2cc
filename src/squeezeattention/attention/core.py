"""Exact attention over a layer's tokens, in blocks of queries; never a [T, T] matrix.

Shapes: B batch, H heads of the keys, G query heads per key head (grouped-query attention), q queries, N tokens,
D width. Queries are packed as [B, H, G * q, D] so that keys and values are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from .visibility import Visibility

#: Elements of one block of scores (B * heads * rows * N): about 16 MiB in fp32 ...
_BLOCK_ELEMENTS = 4 * 2**20
#: ... but not fewer query rows than this, or the matrix products become slow.
_BLOCK_ROWS = 16
#: The same for blocks of one head on the CPU: 2 MiB stay in its cache from the product to the sum.
_HEAD_ELEMENTS, _HEAD_ROWS = 2**19, 64


@dataclass(frozen=True)
class Scoring:
    """How scores are made, besides the dot product."""

    scale: float
    softcap: float | None = None
    """Scores become ``softcap * tanh(score / softcap)`` (Gemma 2)."""
    sink_logits: torch.Tensor | None = None
    """[Hq] or [B, Hq]: a learned extra logit per query head that takes part in the softmax only (GPT-OSS)."""

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sink_logits is None

    def logits(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """[..., R, D] x [..., N, D] -> fp32 [..., R, N]."""
        return self.capped(product(query * self.scale, key.transpose(-1, -2)).float())

    def logits_of_few(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """The same for few rows, [BH, R, D] x [BH, N, D]."""
        return self.logits_of_scaled(query * self.scale, key)

    def logits_of_scaled(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """The same of few queries that are scaled already."""
        if query.shape[1] == 1 and query.shape[2] > 64 and query.dtype == torch.float32:  # 2-3 times as fast there
            return self.capped(torch.bmm(key, query.transpose(1, 2)).transpose(1, 2))
        return self.capped(torch.bmm(query, key.transpose(1, 2)).float())

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def sink_column(self, heads: int, rows: int, like: torch.Tensor) -> torch.Tensor | None:
        """The sink logits laid out for packed queries: [B or 1, H, G * rows, 1]."""
        if self.sink_logits is None:
            return None
        batch = 1 if self.sink_logits.ndim == 1 else self.sink_logits.shape[0]
        column = self.sink_logits.to(like).reshape(batch, heads, -1, 1).expand(-1, -1, -1, rows)
        return column.reshape(batch, heads, -1, 1)

    def of(self, row: int, first: int, stop: int) -> Scoring:
        """The same for some of the query heads of one row."""
        if self.sink_logits is None:
            return self
        own = self.sink_logits if self.sink_logits.ndim == 1 else self.sink_logits[row]
        return replace(self, sink_logits=own[first:stop])


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Matrix product over the last two dimensions. A single one is not a batch: that kernel takes all threads."""
    if one.shape[:-2] == other.shape[:-2] == (1, 1):
        return torch.mm(one[0, 0], other[0, 0])[None, None]
    return torch.matmul(one, other)


def probabilities(logits: torch.Tensor, mask: torch.Tensor | None, sink: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last dimension with a bool mask; rows that see nothing become zeros. In place."""
    if mask is not None:
        logits.masked_fill_(~mask, -torch.inf)
    if sink is not None:
        logits = torch.cat([logits, sink.expand(*logits.shape[:-1], 1)], dim=-1)
        return logits.softmax(dim=-1)[..., :-1]
    out = logits.softmax(dim=-1)
    return out if mask is None else out.nan_to_num_(0.0)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visibility: Visibility,
    scoring: Scoring,
    *,
    score_heads: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of several queries; optionally the attention each token received.

    Args:
        query: ``[B, Hq, q, D]``; key ``[B, H, N, D]``; value ``[B, H, N, Dv]``; H divides Hq.
        score_heads: number of heads to gather scores for (the cache's KV heads), ``None`` for no scores.

    Returns:
        output ``[B, Hq, q, Dv]`` and, if asked for, fp32 ``[B, score_heads, N]``: softmax probability summed
        over the queries, mean over the query heads of each group.
    """
    if visibility.fresh and visibility.ragged:
        return attend_rows(attend, query, key, value, visibility, scoring, score_heads)
    if visibility.is_causal and scoring.is_plain and score_heads is None:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scoring.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out, None
    if score_heads is not None and query.device.type == "cpu":
        return _attend_heads(query, key, value, visibility, scoring, score_heads)
    if score_heads is not None:
        from .fused import attend_with_totals, in_one_dtype
        from .sums import causal_sums

        query, key, value = in_one_dtype(query, key, value)
        if (found := attend_with_totals(query, key, value, visibility, scoring)) is not None:
            with torch.no_grad():
                return found[0], causal_sums(query, key, found[1], scoring, score_heads)
    return _attend_blocks(query, key, value, visibility, scoring, score_heads)


def _attend_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visibility: Visibility, scoring: Scoring,
    score_heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Scores are gathered head by head: the blocks of one head stay in a processor's cache, those of all do not.

    Models hand over heads side by side in each token's row; taken apart once, they are read in one go.
    """
    batch, query_heads, length, _ = query.shape
    heads, tokens = key.shape[1:3]
    group, shared = query_heads // heads, heads // score_heads
    out = query.new_empty(batch, query_heads, length, value.shape[-1])
    scores = query.new_zeros(batch, score_heads, tokens, dtype=torch.float32)
    for row in range(batch):
        for head in range(heads):
            one, kv, own = slice(row, row + 1), slice(head, head + 1), slice(head * group, (head + 1) * group)
            part, mass = _attend_blocks(
                query[one, own].contiguous(), key[one, kv].contiguous(), value[one, kv].contiguous(),
                visibility.of(row, head),
                scoring.of(row, own.start, own.stop), 1, elements=_HEAD_ELEMENTS, least=_HEAD_ROWS,
            )  # fmt: skip
            out[one, own] = part
            if mass is not None:
                scores[one, head // shared] += mass[:, 0] / shared
    return out, scores


def attend_rows(
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visibility: Visibility, scoring: Scoring,
    score_heads: int | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """A padded prompt, row by row without its padding: faster than any mask, and a row stays itself.

    ``attend``: what does a row, :func:`attend` or another with its arguments.
    """
    batch, heads, length, _ = query.shape
    out = query.new_zeros(batch, heads, length, value.shape[-1])
    scores = None if score_heads is None else query.new_zeros(batch, score_heads, length, dtype=torch.float32)
    places = visibility.places()
    for row in range(batch):
        which = row if len(places) > 1 else 0
        place = places[which]
        if place is None:
            continue
        one = slice(row, row + 1)
        part, mass = attend(
            query[one, :, place], key[one, :, place], value[one, :, place],
            visibility.rows(which, place), scoring.of(row, 0, heads), score_heads=score_heads,
        )  # fmt: skip
        out[one, :, place] = part
        if scores is not None and mass is not None:
            scores[one, :, place] = mass
    return out, scores


def _attend_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visibility: Visibility, scoring: Scoring,
    score_heads: int | None, *, elements: int = _BLOCK_ELEMENTS, least: int = _BLOCK_ROWS,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    batch, query_heads, length, width = query.shape
    heads, tokens = key.shape[1], key.shape[2]
    group = query_heads // heads
    rows = min(length, max(least, elements // max(1, batch * query_heads * tokens)))
    out = query.new_empty(batch, query_heads, length, value.shape[-1])
    scores = None if score_heads is None else query.new_zeros(batch, score_heads, tokens, dtype=torch.float32)
    fused = scoring.is_plain and scores is None
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        # Where tokens are in order, nothing behind the block's last query is visible.
        seen = tokens - length + stop if visibility.fresh or visibility.is_staircase else tokens
        first = 0
        if visibility.fresh and visibility.window is not None:
            first = max(0, start - visibility.window + 1)
        packed = query[:, :, start:stop].reshape(batch, heads, group * (stop - start), width)
        k, v = key[:, :, first:seen], value[:, :, first:seen]
        mask = None
        if fused or not visibility.is_staircase:
            mask = visibility.block(start, stop, seen)[..., first:].repeat(1, 1, group, 1)
        if fused:
            part = F.scaled_dot_product_attention(packed, k, v, attn_mask=mask, scale=scoring.scale)
        else:
            sink = scoring.sink_column(heads, stop - start, packed.float())
            logits = scoring.logits(packed, k)
            if mask is None:
                hide_later(logits, stop - start)
            mass = probabilities(logits, mask, sink)
            part = product(mass.to(v.dtype), v)
            if scores is not None:
                scores[..., first:seen] += grouped_mass(mass, scores.shape[1], query_heads)
        out[:, :, start:stop] = part.reshape(batch, query_heads, stop - start, -1)
    if visibility.ragged:
        out.masked_fill_((visibility.queries < 0)[:, None, :, None], 0.0)
    return out, scores


def hide_later(logits: torch.Tensor, rows: int) -> None:
    """Mask what lies behind each query of a block: ``[B, H, G * rows, N]``, the last ``rows`` columns are its own."""
    later = torch.ones(rows, rows, dtype=torch.bool, device=logits.device).triu_(1)
    logits.unflatten(2, (-1, rows))[..., -rows:].masked_fill_(later, -torch.inf)


def grouped_mass(mass: torch.Tensor, score_heads: int, query_heads: int) -> torch.Tensor:
    """[B, H, G * rows, N] -> [B, score_heads, N]: sum over rows, mean over the query heads of a score head."""
    batch, _, _, tokens = mass.shape
    if score_heads == 1 and mass.shape[:2] == (1, 1) and mass.device.type == "cpu":
        # A product with ones is the faster sum, and it takes the mean over the query heads along.
        return product(mass.new_full((1, 1, 1, mass.shape[2]), 1 / query_heads), mass)[:, :, 0]
    per_query_head = mass.view(batch, query_heads, -1, tokens).sum(dim=2)
    return per_query_head.view(batch, score_heads, -1, tokens).mean(dim=2)


def probabilities_of(
    key: torch.Tensor, visibility: Visibility, scoring: Scoring, query: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of some queries, for signals: probabilities fp32 [B, Hq, R, N], log-sum-exp fp32 [B, Hq, R].

    ``query`` [B, Hq, R, D] at ``positions`` int64 [B or 1, R]. Rows that see nothing (padding, -1) are zeros,
    their log-sum-exp -inf.
    """
    batch, query_heads, rows, width = query.shape
    heads = key.shape[1]
    mask = replace(visibility, queries=positions).block(0, rows).repeat(1, 1, query_heads // heads, 1)
    packed = query.reshape(batch, heads, -1, width)
    logits = scoring.logits(packed, key).masked_fill_(~mask, -torch.inf)
    sink = scoring.sink_column(heads, rows, packed.float())
    highest = logits.amax(dim=-1)
    probability = probabilities(logits, None, sink).nan_to_num_(0.0)
    if sink is None:  # the largest probability is exp(highest - total): no further pass of exponentials
        total = (highest - probability.amax(dim=-1).log()).nan_to_num_(nan=-torch.inf)
    else:
        total = torch.logaddexp(logits.logsumexp(dim=-1), sink[..., 0])
    shape = (batch, query_heads, rows)
    return probability.reshape(*shape, -1), total.reshape(shape)


def attend_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    *,
    score_heads: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of a decode step: one query ``[B, Hq, 1, D]``, mask bool ``[B or 1, H or 1, N]`` or ``None``.

    Returns output ``[B, Hq, 1, Dv]`` and, if asked for, the scores as in :func:`attend`.
    """
    batch, query_heads, _, width = query.shape
    heads, tokens = key.shape[1:3]
    group = query_heads // heads
    if mask is not None:
        mask = mask[:, :, None, :]
    # On the CPU two products beat the fused kernel, which has one query row to share out among its blocks.
    products = query.device.type == "cpu" and query.dtype == torch.float32
    if scoring.is_plain and score_heads is None and not products:
        packed = query.reshape(batch, heads, group, width)
        out = F.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scoring.scale)
        return out.reshape(batch, query_heads, 1, -1), None
    # One batch dimension: with so few numbers, the bookkeeping of a 4-D product costs as much as a kernel.
    packed = query.reshape(batch * heads, group, width)
    logits = scoring.logits_of_few(packed, key.flatten(0, 1))
    if mask is None and scoring.sink_logits is None:
        mass = logits.softmax(dim=-1)
    else:
        logits = logits.reshape(batch, heads, group, tokens)
        mass = probabilities(logits, mask, scoring.sink_column(heads, 1, logits))
        mass = mass.reshape(batch * heads, group, tokens)
    out = torch.bmm(mass.to(value.dtype), value.flatten(0, 1)).view(batch, query_heads, 1, -1)
    if score_heads is None:
        return out, None
    mass = mass.reshape(batch, score_heads, query_heads // score_heads, tokens)
    return out, mass[:, :, 0] if mass.shape[2] == 1 else mass.mean(dim=2)

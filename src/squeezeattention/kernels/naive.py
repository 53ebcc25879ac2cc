"""The kernels' twins: what each computes, in a few lines of torch, without a thought for speed.

B batch, H KV heads, G query heads per KV head, N tokens, D width. Everything is fp32. Where KV heads hold different
numbers of tokens: U = B * H units, unit ``u`` KV head ``u % H`` of row ``u // H``, in S slots in all (cache/units.py).
"""

from __future__ import annotations

import torch


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query a row: ``[B, H * G, D]`` over keys ``[B, H, N, D]``, values ``[B, H, N, Dv]``.

    Returns the output ``[B, H * G, Dv]`` and each slot's probability, mean over the group: ``[B, H, N]``. Slots that
    ``visible`` (bool ``[B or 1, H or 1, N]``) leaves out may hold anything, NaN too.
    """
    batch, heads, tokens, _ = keys.shape
    seen = torch.ones(1, 1, tokens, dtype=torch.bool, device=keys.device) if visible is None else visible
    seen = seen.expand(batch, heads, tokens)
    keys = torch.where(seen[..., None], keys.float(), 0.0)
    values = torch.where(seen[..., None], values.float(), 0.0)
    packed = query.float().reshape(batch, heads, -1, query.shape[-1])
    logits = packed @ keys.transpose(-1, -2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~seen[:, :, None], -torch.inf)
    if sink_logits is not None:
        sink = sink_logits.float().reshape(1, heads, -1, 1).expand(batch, -1, -1, 1)
        logits = torch.cat([logits, sink], dim=-1)
    mass = logits.softmax(-1)[..., :tokens].nan_to_num(0.0)
    return (mass @ values).reshape(batch, query.shape[1], -1), mass.mean(2)


def victim(scores: torch.Tensor, positions: torch.Tensor, newest: torch.Tensor, recent: int) -> torch.Tensor:
    """H2O's slot to overwrite when the token at ``newest`` (int64 ``[B or 1]``) comes: int64 ``[B, H]``.

    A hole if there is one; else of the tokens that are not among the ``recent`` newest the one of lowest score, the
    oldest among equals. ``scores`` fp32 ``[B, H, N]``, ``positions`` int64 ``[B, H, N]``, -1 = hole.
    """
    chosen = torch.empty(scores.shape[:2], dtype=torch.int64, device=scores.device)
    for row in range(scores.shape[0]):
        now = int(newest[row if len(newest) > 1 else 0])
        for head in range(scores.shape[1]):
            held = positions[row, head].tolist()
            ranks = [
                (-1.0, -1) if at < 0 else (float(score), at) if at <= now - recent else (float("inf"), at)
                for score, at in zip(scores[row, head].tolist(), held, strict=True)
            ]
            chosen[row, head] = min(range(len(ranks)), key=ranks.__getitem__)
    return chosen


def ragged_decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    begins: torch.Tensor,
    rooms: torch.Tensor,
    heads: int,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
    *,
    positions: torch.Tensor | None = None,
    query_positions: torch.Tensor | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query a unit: ``[U, G, D]`` over keys ``[S, D]``, values ``[S, Dv]``, int64 ``begins`` and ``rooms`` ``[U]``.

    Returns the output ``[U, G, Dv]`` and each slot's probability, mean over the group: ``[S]``, 0 where no unit is. Not
    seen are holes (``positions`` int64 ``[S]``, -1) and what a ``window`` has left behind, as seen from
    ``query_positions`` int64 ``[B or 1]``; ``sink_logits`` ``[H * G]`` are the same in each row.
    """
    out = query.new_empty(*query.shape[:2], values.shape[1], dtype=torch.float32)
    mass = query.new_zeros(len(keys), dtype=torch.float32)
    for unit, (begin, room) in enumerate(zip(begins.tolist(), rooms.tolist(), strict=True)):
        own, row, head = slice(begin, begin + room), unit // heads, unit % heads
        seen = None if positions is None else positions[own] >= 0
        if seen is not None and positions is not None and query_positions is not None and window is not None:
            seen &= positions[own] > query_positions[row if len(query_positions) > 1 else 0] - window
        out[unit], mass[own] = (
            found[0]
            for found in decode_attention(
                query[unit, None], keys[None, None, own], values[None, None, own], seen, scale, softcap,
                None if sink_logits is None else sink_logits.view(heads, -1)[head],
            )
        )  # fmt: skip
    return out, mass


def ragged_victims(
    scores: torch.Tensor,
    positions: torch.Tensor,
    begins: torch.Tensor,
    rooms: torch.Tensor,
    heads: int,
    query_positions: torch.Tensor,
    recent: torch.Tensor,
) -> torch.Tensor:
    """:func:`victim` of each unit for the token behind ``query_positions`` ``[B or 1]``: int64 ``[U]`` slots of all.

    ``scores`` fp32 ``[S]``, ``positions`` int64 ``[S]``, ``recent`` int64 ``[U]``: so many newest of each unit stay.
    """
    chosen = torch.empty_like(begins)
    for unit, (begin, room) in enumerate(zip(begins.tolist(), rooms.tolist(), strict=True)):
        own, row = slice(begin, begin + room), unit // heads if len(query_positions) > 1 else 0
        newest = query_positions[row : row + 1] + 1
        found = victim(scores[None, None, own], positions[None, None, own], newest, int(recent[unit]))
        chosen[unit] = begin + found[0, 0]
    return chosen


def attention_mass(
    query: torch.Tensor,
    keys: torch.Tensor,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that each token received from ``query`` ``[B, H * G, T, D]``: sum over queries, mean over the group.

    A query at position i sees tokens at 0 <= j <= i and, with a window, j > i - window. ``query_positions`` int64
    ``[B or 1, T]``, ``key_positions`` int64 ``[B or 1, H or 1, N]``; -1 = padding, holes. Returns mass fp32
    ``[B, H, N]`` and the log-sum-exp of each row of scores, fp32 ``[B, H * G, T]`` (-inf: it saw nothing).
    """
    batch, heads, tokens, width = keys.shape
    length = query.shape[2]
    at, held = query_positions[:, None, :, None], key_positions[:, :, None, :]
    seen = (held >= 0) & (held <= at)
    if window is not None:
        seen &= held > at - window
    seen = seen.expand(batch, heads, length, tokens)[:, :, None]
    logits = query.float().reshape(batch, heads, -1, length, width) @ keys.float().transpose(-1, -2)[:, :, None] * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~seen, -torch.inf)
    if sink_logits is not None:
        sink = sink_logits.float().reshape(1, heads, -1, 1, 1).expand(batch, -1, -1, length, 1)
        logits = torch.cat([logits, sink], dim=-1)
    total = logits.logsumexp(-1)
    mass = logits.softmax(-1)[..., :tokens].nan_to_num(0.0)
    return mass.sum(3).mean(2), total.reshape(batch, -1, length)

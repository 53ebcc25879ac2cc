"""Attention of tokens that are read again behind a prompt, over all that the layer holds, storing nothing.

Shapes as in core.py; each of the B rows has k pieces of m tokens, which see the row's tokens and, each for itself,
their own. Queries [B * k, Hq, m, D], the pieces of a row side by side.
"""

from __future__ import annotations

import torch

from .core import Scoring

#: Elements of the scores that are made at once (32 MiB in fp32).
_ELEMENTS = 8 * 2**20


def attend_replayed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    held_key: torch.Tensor,
    held_value: torch.Tensor,
    positions: torch.Tensor,
    query_positions: torch.Tensor,
    columns: torch.Tensor,
    window: int | None,
    scoring: Scoring,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the pieces, and how much they look at the tokens that they repeat.

    Args:
        key: the pieces' own, ``[B * k, H, m, D]``; ``value`` alike.
        held_key: what the layer holds, ``[B, H, N, D]``; ``held_value`` alike.
        positions: of what is held, int64 ``[B or 1, H or 1, N]``, -1 = hole.
        query_positions: of the pieces' tokens, int64 ``[B, m]``, all behind what is held.
        columns: positions of the tokens whose attention is asked for, int64 ``[B, k, c]``, -1 = none.

    Returns:
        output ``[B * k, Hq, m, Dv]``, and fp32 ``[B, H, k, c]``: the most attention that any token of the piece pays,
        with any query head of the group, to the token at that position; 0 for one that is not held.
    """
    rows, pieces, asked = columns.shape
    _, query_heads, length, _ = query.shape
    heads, tokens = held_key.shape[1:3]
    group = query_heads // heads
    out = query.new_empty(rows, pieces, query_heads, length, value.shape[-1])
    received = query.new_zeros(rows, heads, pieces, asked, dtype=torch.float32)
    packed = query.reshape(rows, pieces, heads, group * length, -1)
    own_key, own_value = (part.reshape(rows, pieces, heads, length, -1) for part in (key, value))
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu_(1).repeat(group, 1)
    if window is not None:  # a window shorter than a piece hides its own first tokens, too
        step = torch.arange(length, device=query.device)
        later |= (step[:, None] - step >= window).repeat(group, 1)
    most = max(1, _ELEMENTS // (heads * group * length * (tokens + length)))
    for row in range(0, rows, most):
        some = slice(row, min(row + most, rows))
        held = positions[some] if len(positions) > 1 else positions
        hidden: torch.Tensor | None = None
        if window is None and (held < 0).any():  # else a pass over all scores less
            hidden = (held < 0)[:, :, None, :]
        elif window is not None:
            passed = held[:, :, None, :] <= query_positions[some][:, None, :, None] - window
            hidden = (held < 0)[:, :, None, :] | passed.repeat(1, 1, group, 1)
        for piece in range(pieces):
            queries = packed[some, piece]
            before = scoring.logits(queries, held_key[some])
            if hidden is not None:
                before.masked_fill_(hidden, -torch.inf)
            own = scoring.logits(queries, own_key[some, piece]).masked_fill_(later, -torch.inf)
            logits = torch.cat([before, own], dim=-1)
            sink = scoring.sink_column(heads, length, logits)
            if sink is not None:
                logits = torch.cat([logits, sink.expand(*logits.shape[:-1], 1)], dim=-1)
            mass = logits.softmax(dim=-1)
            far, near = mass[..., :tokens], mass[..., tokens : tokens + length]
            part = torch.matmul(far.to(held_value.dtype), held_value[some])
            part = part + torch.matmul(near.to(value.dtype), own_value[some, piece])
            out[some, piece] = part.reshape(len(part), query_heads, length, -1)
            received[some, :, piece] = _most_received(far, held, columns[some, piece])
    return out.flatten(0, 1), received


def _most_received(mass: torch.Tensor, held: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Highest of ``mass`` [B, H, R, N] over R at the positions ``columns`` [B, c]: fp32 [B, H, c]."""
    at = held[:, :, None, :] == columns[:, None, :, None]  # [B or 1, H or 1, c, N]
    slot, there = at.to(torch.int8).argmax(dim=-1), at.any(dim=-1)
    most = mass.amax(dim=2)
    shape = (*most.shape[:2], columns.shape[1])
    return most.gather(-1, slot.expand(shape)).masked_fill(~there.expand(shape), 0.0).float()

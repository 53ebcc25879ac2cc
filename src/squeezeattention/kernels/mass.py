"""The attention that each token of a prompt received, without a matrix of all scores (Triton).

::

    _row_totals    log-sum-exp of each query's scores; left out where an attention kernel hands them over
    _column_sums   one program for each KV head and block of tokens: goes through the queries that see it and adds up
                   exp(score - total), so no two programs write to the same place
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import interpreted
from .decode import _capped, block_of
from .launching import launch


@triton.jit
def _row_totals(  # type: ignore[no-untyped-def]
    query, keys, query_at, key_at, sinks, total,
    q_row, q_head, q_step, k_row, k_head, k_slot, a_row, b_row, b_head,
    query_heads, group, length, tokens, window, scale, softcap,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    unit, block = tl.program_id(0), tl.program_id(1)
    row, query_head = unit // query_heads, unit % query_heads
    head = query_head // group
    wide, step = tl.arange(0, WIDE), block * BLOCK + tl.arange(0, BLOCK)
    here = step < length
    at = tl.load(query_at + row * a_row + step, mask=here, other=-1)
    q = tl.load(query + row * q_row + query_head * q_head + step[:, None] * q_step + wide[None, :],
                mask=here[:, None] & (wide < WIDTH)[None, :], other=0.0)  # fmt: skip
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    if SINKS:
        high = tl.zeros([BLOCK], tl.float32) + tl.load(sinks + query_head).to(tl.float32)
    weight = tl.where(high == float("-inf"), 0.0, 1.0)
    last = tl.max(at, 0)
    for start in range(0, tokens, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        held = tl.load(key_at + row * b_row + head * b_head + slot, mask=slot < tokens, other=-1)
        if tl.min(tl.where(held < 0, last + 1, held), 0) <= last:
            k = tl.load(keys + row * k_row + head * k_head + slot[:, None] * k_slot + wide[None, :],
                        mask=(held >= 0)[:, None] & (wide < WIDTH)[None, :], other=0.0)  # fmt: skip
            if UPCAST:
                q, k = q.to(tl.float32), k.to(tl.float32)
            logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if CAPPED:
                logits = _capped(logits, softcap)
            seen = (held >= 0)[None, :] & (held[None, :] <= at[:, None])
            if WINDOWED:
                seen &= held[None, :] > at[:, None] - window
            logits = tl.where(seen, logits, float("-inf"))
            higher = tl.maximum(high, tl.max(logits, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weight = weight * tl.exp(high - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
            high = higher
    tl.store(total + unit * length + step, high + tl.log(weight), mask=here)


@triton.jit
def _column_sums(  # type: ignore[no-untyped-def]
    query, keys, query_at, key_at, total, mass,
    q_row, q_head, q_step, k_row, k_head, k_slot, a_row, b_row, b_head,
    heads, length, tokens, window, scale, softcap,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    unit, block = tl.program_id(0), tl.program_id(1)
    row, head = unit // heads, unit % heads
    wide, slot = tl.arange(0, WIDE), block * BLOCK + tl.arange(0, BLOCK)
    held = tl.load(key_at + row * b_row + head * b_head + slot, mask=slot < tokens, other=-1)
    k = tl.load(keys + row * k_row + head * k_head + slot[:, None] * k_slot + wide[None, :],
                mask=(held >= 0)[:, None] & (wide < WIDTH)[None, :], other=0.0)  # fmt: skip
    first = tl.min(tl.where(held < 0, 9223372036854775807, held), 0)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, length, BLOCK):
        step = start + tl.arange(0, BLOCK)
        at = tl.load(query_at + row * a_row + step, mask=step < length, other=-1)
        if tl.max(at, 0) >= first:
            seen = (held >= 0)[None, :] & (held[None, :] <= at[:, None])
            if WINDOWED:
                seen &= held[None, :] > at[:, None] - window
            for member in range(GROUP):  # not unrolled: the registers would not hold it
                query_head = head * GROUP + member
                q = tl.load(query + row * q_row + query_head * q_head + step[:, None] * q_step + wide[None, :],
                            mask=(step < length)[:, None] & (wide < WIDTH)[None, :], other=0.0)  # fmt: skip
                if UPCAST:
                    q, k = q.to(tl.float32), k.to(tl.float32)
                logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
                if CAPPED:
                    logits = _capped(logits, softcap)
                whole = tl.load(total + (row * heads * GROUP + query_head) * length + step, mask=step < length,
                                other=0.0)  # fmt: skip
                whole = tl.where(whole == float("-inf"), 0.0, whole)
                sums += tl.sum(tl.where(seen, tl.exp(logits - whole[:, None]), 0.0), 0)
    tl.store(mass + unit * tokens + slot, sums / GROUP, mask=slot < tokens)


def attention_mass(
    query: torch.Tensor,
    keys: torch.Tensor,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
    *,
    total: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`naive.attention_mass`. ``total`` fp32 ``[B, H * G, T]``: the log-sum-exp of each row, if known."""
    batch, heads, tokens, width = keys.shape
    query_heads, length = query.shape[1:3]
    query, keys = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, keys))
    query_positions = query_positions.expand(batch, length)
    key_positions = key_positions.expand(batch, heads, tokens)
    if query_positions.stride(1) != 1:
        query_positions = query_positions.contiguous()
    if key_positions.stride(2) != 1:
        key_positions = key_positions.contiguous()
    strides = (
        *query.stride()[:3], *keys.stride()[:3], query_positions.stride(0), key_positions.stride(0),
        key_positions.stride(1),
    )  # fmt: skip
    block = block_of(query, keys)
    sizes = {"WIDTH": width, "WIDE": max(16, triton.next_power_of_2(width)), "BLOCK": block}
    traits = {"WINDOWED": window is not None, "CAPPED": softcap is not None, "UPCAST": interpreted()}
    numbers = (0 if window is None else window, scale, 1.0 if softcap is None else softcap)
    if total is None:
        total = torch.empty(batch, query_heads, length, dtype=torch.float32, device=query.device)
        launch(
            _row_totals, (batch * query_heads, triton.cdiv(length, block)),
            query, keys, query_positions, key_positions, total if sink_logits is None else sink_logits, total, *strides,
            query_heads, query_heads // heads, length, tokens, *numbers, SINKS=sink_logits is not None,
            **sizes, **traits,
        )  # fmt: skip
    mass = torch.empty(batch, heads, tokens, dtype=torch.float32, device=query.device)
    launch(
        _column_sums, (batch * heads, triton.cdiv(tokens, block)),
        query, keys, query_positions, key_positions, total.contiguous(), mass, *strides,
        heads, length, tokens, *numbers, GROUP=query_heads // heads, **sizes, **traits,
    )  # fmt: skip
    return mass, total

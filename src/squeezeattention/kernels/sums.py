"""The attention that each token received, from the log-sum-exp that an attention kernel left of each row (Triton).

For causal attention over tokens in order, with nothing hidden in between: query ``i`` of T sees the first
``N - T + i + 1`` of N tokens. What is windowed, capped or has holes is the general kernels' (``mass.py``).

::

                   queries ──>
    a program's    . . . . │ d d │ x x x x x x x x       .  sees none of the block: not looked at
    block of keys  . . . . │ d d │ x x x x x x x x       d  sees some: compared; at most a few blocks
                                                         x  sees all: a product, an exponential, a sum

A program holds one block of keys and goes through all queries of one *query* head that see it. One program for each KV
head would read keys once for the whole group, but keys are a small part of what is read, and at batch 1 there would be
too few programs, of too different length, for a large GPU. Nothing is added atomically: sums are the same in every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import interpreted
from .decode import block_of
from .launching import launch

_LOG2_E = tl.constexpr(1.4426950408889634)
#: Bytes of queries that programs running at a time go through: they are read again and again, so they had better stay
#: in the L2 cache (40 MB on an A100, 50 on an H100).
_CACHED = 2**24


class Tiles(NamedTuple):
    """How the work is cut: keys and queries of a product, warps of a program, pieces of queries on their way."""

    keys: int
    queries: int
    warps: int
    stages: int


@triton.jit
def _masses(  # type: ignore[no-untyped-def]
    keys, query, total, step, length, stride, wide, scale, WIDTH: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Probabilities [keys, queries] of the queries at ``step``."""
    q = tl.load(query + step[:, None] * stride + wide[None, :],
                mask=(step < length)[:, None] & (wide < WIDTH)[None, :], other=0.0)  # fmt: skip
    # Queries that are not there, or have seen nothing, give nothing: exp2(x - inf) = 0.
    whole = tl.load(total + step, mask=step < length, other=float("inf"))
    whole = tl.where(whole == float("-inf"), float("inf"), whole) * _LOG2_E
    if UPCAST:
        q = q.to(tl.float32)
    # Keys are the rows: the sum over queries is then for the most part one inside of each thread.
    logits = tl.dot(keys, tl.trans(q), input_precision="ieee")
    return tl.math.exp2(logits * (scale * _LOG2_E) - whole[None, :])


@triton.jit
def _causal_sums(  # type: ignore[no-untyped-def]
    query, keys, total, received,
    q_row, q_head, q_step, k_row, k_head, k_slot,
    units, together, blocks, query_heads, group, length, tokens, scale,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # A few heads at a time, whose queries fit the cache; of these the blocks that are seen most come first, so that the
    # last programs to begin are short.
    program = tl.program_id(0)
    lowest = program // (together * blocks) * together
    within = program % (together * blocks)
    here = tl.minimum(together, units - lowest)
    unit, block = lowest + within % here, within // here
    row, query_head = (unit // query_heads).to(tl.int64), (unit % query_heads).to(tl.int64)
    wide, slot = tl.arange(0, WIDE), block * KEYS + tl.arange(0, KEYS)
    k = tl.load(
        keys + row * k_row + query_head // group * k_head + slot.to(tl.int64)[:, None] * k_slot + wide[None, :],
        mask=(slot < tokens)[:, None] & (wide < WIDTH)[None, :], other=0.0,
    )  # fmt: skip
    if UPCAST:
        k = k.to(tl.float32)
    query += row * q_row + query_head * q_head
    total += unit.to(tl.int64) * length
    # The first query that sees the block's first key, and the first that sees its last one.
    past = tokens - length
    first = tl.maximum(block * KEYS - past, 0) // QUERIES * QUERIES
    full = tl.minimum(tl.cdiv(tl.maximum(block * KEYS + KEYS - 1 - past, 0), QUERIES) * QUERIES, length)
    full = tl.maximum(full, first)
    sums = tl.zeros([KEYS], tl.float32)
    for start in range(first, full, QUERIES):
        step = start + tl.arange(0, QUERIES)
        mass = _masses(k, query, total, step.to(tl.int64), length, q_step, wide, scale, WIDTH, UPCAST)
        sums += tl.sum(tl.where(slot[:, None] <= past + step[None, :], mass, 0.0), 1)
    for start in range(full, length, QUERIES):
        step = (start + tl.arange(0, QUERIES)).to(tl.int64)
        sums += tl.sum(_masses(k, query, total, step, length, q_step, wide, scale, WIDTH, UPCAST), 1)
    tl.store(received + unit.to(tl.int64) * tokens + slot, sums, mask=slot < tokens)


def tiles_for(query: torch.Tensor, keys: torch.Tensor) -> Tiles:
    """So much that several programs run side by side, three where heads are not wider than 128: the exponentials of one
    are computed while the products of another are. What it takes is checked in tests/kernels/test_compiles.py."""
    wide = max(16, triton.next_power_of_2(query.shape[-1]))
    if query.element_size() == 2 and wide <= 256:
        return Tiles(128, 64, 4, 2) if wide <= 128 else Tiles(64, 32, 4, 3)
    block = block_of(query, keys)
    return Tiles(block, block, 4, 3)


def causal_sums(
    query: torch.Tensor, keys: torch.Tensor, total: torch.Tensor, scale: float, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """Attention that each token received: sum over the queries, mean over the group, fp32 ``[B, H, N]``.

    ``query`` ``[B, H * G, T, D]`` are the last T of the N tokens of ``keys`` ``[B, H, N, D]``, each of which sees all
    tokens up to its own. ``total`` fp32 ``[B, H * G, T]``: the natural log-sum-exp of each row of scaled scores,
    whatever else took part in its softmax. As :func:`naive.attention_mass` gives it.
    """
    batch, heads, tokens, width = keys.shape
    query_heads, length = query.shape[1:3]
    query, keys = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, keys))
    tiles = tiles or tiles_for(query, keys)
    units, blocks = batch * query_heads, triton.cdiv(tokens, tiles.keys)
    together = max(1, min(units, _CACHED // max(1, length * width * query.element_size())))
    received = torch.empty(batch, query_heads, tokens, dtype=torch.float32, device=query.device)
    launch(
        _causal_sums, (units * blocks,),
        query, keys, total.contiguous(), received, *query.stride()[:3], *keys.stride()[:3],
        units, together, blocks, query_heads, query_heads // heads, length, tokens, scale,
        WIDTH=width, WIDE=max(16, triton.next_power_of_2(width)), KEYS=tiles.keys, QUERIES=tiles.queries,
        UPCAST=interpreted(),  # whose products of bf16 are wrong
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return received if heads == query_heads else received.unflatten(1, (heads, -1)).mean(2)

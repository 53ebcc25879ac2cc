"""Decode attention over the slots of a layer, with H2O's scores and its next victim from the same pass (Triton).

::

    _partial   one program for each KV head and split of its slots: keys and values are read once, for all query heads
               of the group; running maximum, sum and output of the split; raw scores, if they are wanted
    _combine   one program for each KV head: splits put together; probabilities added to the scores and, on the way,
               the slot found that the next token takes

The second reads N numbers a query head where the first reads 2 * N * D a KV head: about a hundredth.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from . import interpreted
from .launching import launch

#: Programs that keep a large GPU busy.
_PROGRAMS = 264
#: Slots that a program reads together, at most, and bytes of their keys and values: two such pieces are on their way at
#: a time, and have to fit the shared memory of small GPUs (99 KB).
_BLOCK, _BLOCK_BYTES = 64, 2**15


def block_of(*read: torch.Tensor) -> int:
    """Slots of a block, a power of two, for what is read of each of these ``[..., width]``."""
    each = sum(max(16, triton.next_power_of_2(one.shape[-1])) * one.element_size() for one in read)
    block = _BLOCK
    while block > 16 and block * each > _BLOCK_BYTES:
        block //= 2
    return block


@triton.jit
def _capped(logits, softcap):  # type: ignore[no-untyped-def]
    # softcap * tanh(x / softcap), by the sigmoid
    return softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)


@triton.jit
def _partial(  # type: ignore[no-untyped-def]
    query, keys, values, visible, part, most, total, raw,
    q_row, q_head, k_row, k_head, k_slot, v_row, v_head, v_slot, m_row, m_head,
    heads, tokens, span, splits, scale, softcap,
    GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    OUT: tl.constexpr, OUT_WIDE: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, CAPPED: tl.constexpr, KEEP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    unit, split = tl.program_id(0), tl.program_id(1)
    row, head = unit // heads, unit % heads
    group, wide, out_wide = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, OUT_WIDE)
    q = tl.load(
        query + row * q_row + (head * GROUP + group)[:, None] * q_head + wide[None, :],
        mask=(group < GROUP)[:, None] & (wide < WIDTH)[None, :], other=0.0,
    )  # fmt: skip
    if UPCAST:
        q = q.to(tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, OUT_WIDE], tl.float32)
    for start in range(split * span, min((split + 1) * span, tokens), BLOCK):
        slot = start + tl.arange(0, BLOCK)
        seen = (slot < tokens) & (slot < (split + 1) * span)
        if MASKED:
            seen &= tl.load(visible + row * m_row + head * m_head + slot, mask=seen, other=0) != 0
        k = tl.load(
            keys + row * k_row + head * k_head + slot[:, None] * k_slot + wide[None, :],
            mask=seen[:, None] & (wide < WIDTH)[None, :], other=0.0,
        )  # fmt: skip
        if UPCAST:
            k = k.to(tl.float32)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if CAPPED:
            logits = _capped(logits, softcap)
        logits = tl.where(seen[None, :], logits, float("-inf"))
        if KEEP:
            tl.store(
                raw + (unit * GROUP + group)[:, None] * tokens + slot[None, :], logits,
                mask=(group < GROUP)[:, None] & ((slot < tokens) & (slot < (split + 1) * span))[None, :],
            )  # fmt: skip
        higher = tl.maximum(high, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a block of which nothing is seen
        mass = tl.exp(logits - base[:, None])
        keep = tl.exp(high - base)
        weight = weight * keep + tl.sum(mass, 1)
        v = tl.load(
            values + row * v_row + head * v_head + slot[:, None] * v_slot + out_wide[None, :],
            mask=seen[:, None] & (out_wide < OUT)[None, :], other=0.0,
        )  # fmt: skip
        if UPCAST:
            v = v.to(tl.float32)
        out = out * keep[:, None] + tl.dot(mass.to(v.dtype), v, input_precision="ieee")
        high = higher
    at = (unit * splits + split) * GROUP + group
    tl.store(most + at, high, mask=group < GROUP)
    tl.store(total + at, weight, mask=group < GROUP)
    tl.store(part + at[:, None] * OUT + out_wide[None, :], out,
             mask=(group < GROUP)[:, None] & (out_wide < OUT)[None, :])  # fmt: skip


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    part, most, total, raw, sinks, out, scores, positions, newest, chosen,
    o_row, o_head, s_row, s_head, p_row, p_head, n_row,
    heads, tokens, splits, recent,
    GROUP: tl.constexpr, OUT: tl.constexpr, OUT_WIDE: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    SINKS: tl.constexpr, SCORES: tl.constexpr, VICTIM: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0)
    row, head = unit // heads, unit % heads
    split, out_wide = tl.arange(0, SPLITS), tl.arange(0, OUT_WIDE)
    # Query heads one after the other; a token's probabilities are added up over them.
    for member in tl.static_range(GROUP):
        at = (unit * splits + split) * GROUP + member
        high = tl.load(most + at, mask=split < splits, other=float("-inf"))
        weight = tl.load(total + at, mask=split < splits, other=0.0)
        top = tl.max(high, 0)
        if SINKS:
            sink = tl.load(sinks + head * GROUP + member).to(tl.float32)
            top = tl.maximum(top, sink)
        base = tl.where(top == float("-inf"), 0.0, top)
        share = tl.exp(high - base)
        whole = tl.sum(weight * share, 0)
        if SINKS:
            whole += tl.exp(sink - base)
        inverse = tl.where(whole > 0, 1.0 / tl.where(whole > 0, whole, 1.0), 0.0)
        parts = tl.load(part + at[:, None] * OUT + out_wide[None, :],
                        mask=(split < splits)[:, None] & (out_wide < OUT)[None, :], other=0.0)  # fmt: skip
        result = tl.sum(parts * share[:, None], 0) * inverse
        tl.store(out + row * o_row + (head * GROUP + member) * o_head + out_wide,
                 result.to(out.dtype.element_ty), mask=out_wide < OUT)  # fmt: skip
        if SCORES:
            for start in range(0, tokens, BLOCK):
                slot = start + tl.arange(0, BLOCK)
                logits = tl.load(raw + (unit * GROUP + member) * tokens + slot, mask=slot < tokens, other=float("-inf"))
                mass = tl.exp(logits - base) * inverse / GROUP
                where = scores + row * s_row + head * s_head + slot
                tl.store(where, tl.load(where, mask=slot < tokens, other=0.0) + mass, mask=slot < tokens)
    if VICTIM:
        # Scores are read as other threads of this program may have written them.
        tl.debug_barrier()
        edge = tl.load(newest + row * n_row) - recent
        lowest, found = tl.full((), float("inf"), tl.float32), tl.zeros((), tl.int64)
        oldest = tl.full((), 9223372036854775807, tl.int64)
        for start in range(0, tokens, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            # Not `at`: a name has one type and shape in a compiled loop, and that one is taken above.
            held = tl.load(positions + row * p_row + head * p_head + slot, mask=slot < tokens,
                           other=9223372036854775807)  # fmt: skip
            score = tl.load(scores + row * s_row + head * s_head + slot, mask=slot < tokens, other=float("inf"))
            score = tl.where(held < 0, -1.0, tl.where(held <= edge, score, float("inf")))
            low = tl.min(score, 0)
            age = tl.where(score == low, held, 9223372036854775807)
            old = tl.min(age, 0)
            place = start + tl.argmin(age, 0)
            better = (low < lowest) | ((low == lowest) & (old < oldest))
            lowest = tl.where(better, low, lowest)
            oldest = tl.where(better, old, oldest)
            found = tl.where(better, place.to(tl.int64), found)
        tl.store(chosen + unit, found)


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
    *,
    scores: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    newest: torch.Tensor | None = None,
    recent: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One query a row, ``[B, H * G, D]``: output ``[B, H * G, Dv]`` as :func:`naive.decode_attention` gives it.

    ``scores`` fp32 ``[B, H, N]``: each slot's probability is added in place. With ``positions`` ``[B, H, N]`` and
    ``newest`` ``[B or 1]`` of the *next* token, the slot that it will take is returned, int64 ``[B, H]``, as
    :func:`naive.victim` chooses it from the new scores.
    """
    batch, heads, tokens, width = keys.shape
    out_width = values.shape[-1]
    group = query.shape[1] // heads
    splits = max(1, min(triton.cdiv(_PROGRAMS, batch * heads), triton.cdiv(tokens, 4 * _BLOCK)))
    span = triton.cdiv(triton.cdiv(tokens, splits), _BLOCK) * _BLOCK
    splits = triton.cdiv(tokens, span)
    like: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    part = torch.empty(batch * heads, splits, group, out_width, **like)
    most, total = torch.empty(2, batch * heads, splits, group, **like)
    raw = torch.empty(batch * heads, group, tokens, **like) if scores is not None else most
    out = torch.empty(batch, query.shape[1], out_width, dtype=query.dtype, device=query.device)
    mask_strides = (0, 0)
    if visible is not None:
        visible = visible.expand(batch, heads, tokens).to(torch.uint8)
        if visible.stride(2) != 1:
            visible = visible.contiguous()
        mask_strides = visible.stride(0), visible.stride(1)
    query, keys, values = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, keys, values))
    launch(
        _partial, (batch * heads, splits),
        query, keys, values, query if visible is None else visible, part, most, total, raw,
        query.stride(0), query.stride(1), *keys.stride()[:3], *values.stride()[:3], *mask_strides,
        heads, tokens, span, splits, scale, 1.0 if softcap is None else softcap,
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)),
        WIDTH=width, WIDE=max(16, triton.next_power_of_2(width)),
        OUT=out_width, OUT_WIDE=max(16, triton.next_power_of_2(out_width)), BLOCK=block_of(keys, values),
        MASKED=visible is not None, CAPPED=softcap is not None, KEEP=scores is not None,
        UPCAST=interpreted(),  # whose products of bf16 are wrong
    )  # fmt: skip
    wanted = scores is not None and positions is not None and newest is not None
    chosen = torch.empty(batch, heads, dtype=torch.int64, device=query.device) if wanted else None
    if positions is not None:
        positions = positions.expand(batch, heads, tokens)
        if positions.stride(2) != 1:
            positions = positions.contiguous()
    launch(
        _combine, (batch * heads,),
        part, most, total, raw, most if sink_logits is None else sink_logits, out,
        most if scores is None else scores, most if positions is None else positions,
        most if newest is None else newest, most if chosen is None else chosen,
        out.stride(0), out.stride(1),
        0 if scores is None else scores.stride(0), 0 if scores is None else scores.stride(1),
        0 if positions is None else positions.stride(0), 0 if positions is None else positions.stride(1),
        0 if newest is None or newest.shape[0] == 1 else newest.stride(0),
        heads, tokens, splits, recent,
        GROUP=group, OUT=out_width, OUT_WIDE=max(16, triton.next_power_of_2(out_width)),
        SPLITS=max(2, triton.next_power_of_2(splits)), BLOCK=1024,
        SINKS=sink_logits is not None, SCORES=scores is not None, VICTIM=chosen is not None,
    )  # fmt: skip
    return out, chosen

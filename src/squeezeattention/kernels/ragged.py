"""Decode attention where each KV head of each row (*unit*) has slots of its own number, in flat buffers (Triton).

::

    _partial   one program for each unit and split of its slots, all units in one launch: keys and values are read once,
               for all query heads of the group; raw scores, if they are wanted
    _combine   the same programs again: splits put together; probabilities added to the scores of the program's own
               slots, and of those the one that may go. Whichever program of a unit ends last compares what all found

A split has as many slots everywhere, so that programs are equally long however the units differ; a small unit has fewer
of them, and what is launched for it beyond does nothing. All sizes are known on the host: nothing waits for the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import interpreted
from .decode import _capped, block_of
from .launching import launch

#: Programs with something to do that keep a large GPU busy: several for each multiprocessor.
_PROGRAMS = 528
#: Splits begin at multiples of this, which every block divides.
_BLOCK = 64
#: Splits that one program of ``_combine`` looks at together.
_CHUNK = 32


class Tiles(NamedTuple):
    """How the work of ``_partial`` is cut: slots that are read together, warps of a program, pieces on their way."""

    block: int
    warps: int
    stages: int


def tiles_for(keys: torch.Tensor, values: torch.Tensor) -> Tiles:
    """On an H100 nothing of what benchmarks/gpu.py tries is faster for a batch of heads of 128 (bf16)."""
    return Tiles(block_of(keys, values), 4, 3)


@triton.jit
def _partial(  # type: ignore[no-untyped-def]
    query, keys, values, positions, query_at, begins, rooms, part, most, total, raw, ended,
    q_unit, q_head, k_slot, v_slot, a_row,
    heads, slots, span, splits, window, scale, softcap,
    GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    OUT: tl.constexpr, OUT_WIDE: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, KEEP: tl.constexpr, VICTIM: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    unit, split = tl.program_id(0), tl.program_id(1)
    begin = tl.load(begins + unit).to(tl.int64)  # what is counted in slots times widths may not fit 32 bits
    room = tl.load(rooms + unit).to(tl.int32)
    first = split * span
    last = tl.minimum(first + span, room)
    if VICTIM:  # noqa: SIM102  # one is decided by the compiler
        if split == 0:
            tl.store(ended + unit, 0)  # programs of _combine that are through
    group, wide, out_wide = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, OUT_WIDE)
    mine = group < tl.where(first < room, GROUP, 0)
    q = tl.load(
        query + unit * q_unit + group[:, None] * q_head + wide[None, :],
        mask=mine[:, None] & (wide < WIDTH)[None, :], other=0.0,
    )  # fmt: skip
    if UPCAST:
        q = q.to(tl.float32)
    at = tl.zeros((), tl.int64)
    if WINDOWED:
        at = tl.load(query_at + (unit // heads) * a_row).to(tl.int64)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, OUT_WIDE], tl.float32)
    for start in range(first, last, BLOCK):
        column = start + tl.arange(0, BLOCK)
        here = column < last
        seen = here
        if MASKED:
            # Filled up with 0: to prefetch with anything else is beyond Triton 3.1.
            held = tl.load(positions + begin + column, mask=here, other=0)
            seen = here & (held >= 0)
            if WINDOWED:
                seen = seen & (held > at - window)
        # Of holes as well, whatever is in them: so keys need not wait for positions.
        k = tl.load(
            keys + begin * k_slot + column[:, None] * k_slot + wide[None, :],
            mask=here[:, None] & (wide < WIDTH)[None, :], other=0.0,
        )  # fmt: skip
        if UPCAST:
            k = k.to(tl.float32)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if CAPPED:
            logits = _capped(logits, softcap)
        logits = tl.where(seen[None, :], logits, float("-inf"))
        if KEEP:
            tl.store(
                raw + begin + group.to(tl.int64)[:, None] * slots + column[None, :], logits,
                mask=mine[:, None] & here[None, :],
            )  # fmt: skip
        higher = tl.maximum(high, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a block of which nothing is seen
        mass = tl.exp(logits - base[:, None])
        keep = tl.exp(high - base)
        weight = weight * keep + tl.sum(mass, 1)
        v = tl.load(
            values + begin * v_slot + column[:, None] * v_slot + out_wide[None, :],
            mask=seen[:, None] & (out_wide < OUT)[None, :], other=0.0,
        )  # fmt: skip
        if UPCAST:
            v = v.to(tl.float32)
        out = out * keep[:, None] + tl.dot(mass.to(v.dtype), v, input_precision="ieee")
        high = higher
    to = (unit * splits + split) * GROUP + group
    tl.store(most + to, high, mask=mine)
    tl.store(total + to, weight, mask=mine)
    tl.store(part + to[:, None] * OUT + out_wide[None, :], out, mask=mine[:, None] & (out_wide < OUT)[None, :])


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    part, most, total, raw, sinks, out, scores, positions, query_at, recent, begins, rooms,
    ended, ranks, places, chosen,
    o_unit, o_head, a_row,
    heads, slots, span, splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, OUT_WIDE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    SINKS: tl.constexpr, SCORES: tl.constexpr, VICTIM: tl.constexpr,
):  # fmt: skip
    unit, split, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    begin = tl.load(begins + unit).to(tl.int64)
    room = tl.load(rooms + unit).to(tl.int32)
    parts = tl.cdiv(room, span)
    group, chunk, out_wide = tl.arange(0, ROWS), tl.arange(0, CHUNK), tl.arange(0, OUT_WIDE)
    # Maximum and sum of each query head over all splits.
    high = tl.full([ROWS], float("-inf"), tl.float32)
    whole = tl.zeros([ROWS], tl.float32)
    if SINKS:
        high = tl.load(sinks + (unit % heads) * GROUP + group, mask=group < GROUP, other=float("-inf")).to(tl.float32)
        whole = tl.where(high == float("-inf"), 0.0, 1.0)
    for start in range(0, parts, CHUNK):
        of = (unit * splits + start + chunk)[None, :] * GROUP + group[:, None]
        there = (start + chunk < parts)[None, :] & (group < GROUP)[:, None]
        peak = tl.load(most + of, mask=there, other=float("-inf"))
        weight = tl.load(total + of, mask=there, other=0.0)
        higher = tl.maximum(high, tl.max(peak, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        whole = whole * tl.exp(high - base) + tl.sum(weight * tl.exp(peak - base[:, None]), 1)
        high = higher
    base = tl.where(high == float("-inf"), 0.0, high)
    inverse = tl.where(whole > 0, 1.0 / tl.where(whole > 0, whole, 1.0), 0.0)
    # Outputs: the unit's programs share out the query heads.
    for member in range(split, GROUP, programs):
        own = tl.sum(tl.where(group == member, base, 0.0), 0)
        result = tl.zeros([OUT_WIDE], tl.float32)
        for start in range(0, parts, CHUNK):
            each = (unit * splits + start + chunk) * GROUP + member
            share = tl.exp(tl.load(most + each, mask=start + chunk < parts, other=float("-inf")) - own)
            piece = tl.load(
                part + each[:, None] * OUT + out_wide[None, :],
                mask=(start + chunk < parts)[:, None] & (out_wide < OUT)[None, :], other=0.0,
            )  # fmt: skip
            result += tl.sum(piece * share[:, None], 0)
        result *= tl.sum(tl.where(group == member, inverse, 0.0), 0)
        tl.store(out + unit * o_unit + member * o_head + out_wide, result.to(out.dtype.element_ty),
                 mask=out_wide < OUT)  # fmt: skip
    if SCORES:
        first = split * span
        last = tl.minimum(first + span, room)
        best, place = tl.full((), 9223372036854775807, tl.int64), tl.zeros((), tl.int64)
        edge = tl.zeros((), tl.int64)
        if VICTIM:  # of the tokens up to here one may go when the next one comes
            edge = tl.load(query_at + (unit // heads) * a_row).to(tl.int64) + 1 - tl.load(recent + unit).to(tl.int64)
        for start in range(first, last, BLOCK):
            column = start + tl.arange(0, BLOCK)
            here = column < last
            logits = tl.load(raw + begin + group.to(tl.int64)[:, None] * slots + column[None, :],
                             mask=(group < GROUP)[:, None] & here[None, :], other=float("-inf"))  # fmt: skip
            mass = tl.sum(tl.exp(logits - base[:, None]) * inverse[:, None], 0) / GROUP
            score = tl.load(scores + begin + column, mask=here, other=0.0) + mass
            tl.store(scores + begin + column, score, mask=here)
            if VICTIM:
                # Score and position as one number: floats that are not negative are ordered as their bits are.
                held = tl.load(positions + begin + column, mask=here, other=0)
                bits = tl.where(held <= edge, score, float("inf")).to(tl.int32, bitcast=True)
                rank = tl.where(held < 0, -1, (bits.to(tl.int64) << 32) + held)
                rank = tl.where(here, rank, 9223372036854775807)
                low = tl.min(rank, 0)
                nearest = start + tl.argmin(rank, 0).to(tl.int64)
                place = tl.where(low < best, nearest, place)
                best = tl.minimum(low, best)
        if VICTIM:  # noqa: SIM102  # one is decided by the compiler
            if first < room:
                tl.store(ranks + unit * splits + split, best)
                tl.store(places + unit * splits + split, place)
                # Released and acquired: the last to come sees what all the others have stored.
                before = tl.atomic_add(ended + unit, 1, sem="acq_rel")
                if before == parts - 1:
                    lowest, found = tl.full((), 9223372036854775807, tl.int64), tl.zeros((), tl.int64)
                    for start in range(0, parts, CHUNK):
                        there = start + chunk < parts
                        of = unit * splits + start + chunk
                        rank = tl.load(ranks + of, mask=there, other=9223372036854775807, cache_modifier=".cg")
                        which = tl.load(places + of, mask=there, other=0, cache_modifier=".cg")
                        low = tl.min(rank, 0)
                        # Holes are equal: the first of them.
                        nearest = tl.min(tl.where(rank == low, which, 9223372036854775807), 0)
                        found = tl.where(low < lowest, nearest, found)
                        lowest = tl.minimum(low, lowest)
                    tl.store(chosen + unit, begin + found)


def spans(slots: int, units: int, largest: int) -> tuple[int, int]:
    """Slots of each split, a multiple of every block, and splits of the largest unit, for so many slots in so many
    units."""
    # Not below a few blocks, or putting together costs more than it gains; and where one unit is far larger than the
    # others not so short that most of what is launched, and most of the room for its results, is for nothing.
    least = max(4 * _BLOCK, slots // _PROGRAMS, units * largest // (8 * _PROGRAMS))
    span = triton.cdiv(least, _BLOCK) * _BLOCK
    return span, triton.cdiv(largest, span)


def ragged_decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    begins: torch.Tensor,
    rooms: torch.Tensor,
    largest: int,
    heads: int,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
    *,
    positions: torch.Tensor | None = None,
    query_positions: torch.Tensor | None = None,
    window: int | None = None,
    dense: bool = False,
    scores: torch.Tensor | None = None,
    recent: torch.Tensor | None = None,
    tiles: Tiles | None = None,
    span: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One query a unit, ``[U, G, D]``: output ``[U, G, Dv]`` as :func:`naive.ragged_decode_attention` gives it.

    ``keys`` ``[S, D]`` and ``values`` ``[S, Dv]``, of which unit ``u``, KV head ``u % heads`` of row ``u // heads``,
    has ``rooms[u]`` (at least one) from ``begins[u]`` on, both int64; ``largest`` is the largest of ``rooms``.

    Every slot is seen unless ``positions`` int64 ``[S]`` is given: then those that hold a token (-1 = hole) and lie,
    with a ``window``, in it as seen from ``query_positions`` int64 ``[B or 1]``. ``dense`` promises that all do.

    ``scores`` fp32 ``[S]``, not negative: each slot's probability is added in place. With all of these and ``recent``
    int64 ``[U]``, the slot that the next token will take is returned, int64 ``[U]`` counted through all slots, as
    :func:`naive.ragged_victims` chooses it from the new scores.

    ``tiles`` and ``span``, slots of each split, are chosen by the sizes unless they are given.
    """
    units, group, width = query.shape
    slots, out_width = values.shape
    chosen_span, splits = spans(slots, units, largest)
    if span is None:
        span = chosen_span
    else:
        splits = triton.cdiv(largest, span)
    query, keys, values = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, keys, values))
    like: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    part = torch.empty(units, splits, group, out_width, **like)
    most, total = (torch.empty(units, splits, group, **like) for _ in range(2))
    # In place of what is not wanted goes something that nobody writes to, so that torch.compile sees no aliases.
    raw = query if scores is None else torch.empty(group, slots, **like)
    out = torch.empty(units, group, out_width, dtype=query.dtype, device=query.device)
    wanted = scores is not None and positions is not None and query_positions is not None and recent is not None
    chosen = torch.empty(units, dtype=torch.int64, device=query.device) if wanted else None
    ended = ranks = places = begins
    if wanted:
        ended = torch.empty(units, dtype=torch.int32, device=query.device)
        ranks, places = (torch.empty(units, splits, dtype=torch.int64, device=query.device) for _ in range(2))
    held = begins if positions is None else positions
    query_at = begins if query_positions is None else query_positions
    a_row = 0 if query_at.shape[0] == 1 else query_at.stride(0)
    masked = positions is not None and not dense
    wide, out_wide = (max(16, triton.next_power_of_2(one)) for one in (width, out_width))
    rows = triton.next_power_of_2(group)
    tiles = tiles or tiles_for(keys, values)
    launch(
        _partial, (units, splits),
        query, keys, values, held, query_at, begins, rooms, part, most, total, raw, ended,
        query.stride(0), query.stride(1), keys.stride(0), values.stride(0), a_row,
        heads, slots, span, splits, 0 if window is None else window, scale, 1.0 if softcap is None else softcap,
        GROUP=group, ROWS=max(16, rows), WIDTH=width, WIDE=wide, OUT=out_width, OUT_WIDE=out_wide,
        BLOCK=tiles.block, MASKED=masked, WINDOWED=masked and window is not None,
        CAPPED=softcap is not None, KEEP=scores is not None, VICTIM=wanted,
        UPCAST=interpreted(),  # whose products of bf16 are wrong
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    # Without scores there is nothing to do but the outputs, a query head each.
    launch(
        _combine, (units, splits if scores is not None else min(splits, group)),
        part, most, total, raw, query if sink_logits is None else sink_logits, out,
        query if scores is None else scores, held, query_at, begins if recent is None else recent, begins, rooms,
        ended, ranks, places, begins if chosen is None else chosen,
        out.stride(0), out.stride(1), a_row, heads, slots, span, splits,
        GROUP=group, ROWS=rows, OUT=out_width, OUT_WIDE=out_wide, CHUNK=_CHUNK, BLOCK=max(64, 1024 // rows),
        SINKS=sink_logits is not None, SCORES=scores is not None, VICTIM=wanted,
    )  # fmt: skip
    return out, chosen

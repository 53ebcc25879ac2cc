"""Exact attention of a decode step over tokens in blocks (cache/blocks.py), which belong to KV heads of any length.

Each block's part is computed as if it were all there is but for the softmax's sum and largest logit, which are those of
its unit; the parts of a unit are then added up. Shapes as in core.py, with C blocks of n slots and U = B * H units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .core import Scoring

if TYPE_CHECKING:
    from ..cache.blocks import Blocks


def attend_one_by_blocks(
    query: torch.Tensor, blocks: Blocks, positions: torch.Tensor, scoring: Scoring, *, scores: bool
) -> torch.Tensor:
    """Attention of queries ``[B, Hq, 1, D]`` at ``positions`` ``[B or 1, 1]`` -> ``[B, Hq, 1, Dv]``.

    With ``scores`` the blocks' own are added to.
    """
    batch, query_heads, _, width = query.shape
    units, owner = len(blocks.numbers), blocks.owner
    packed = query.reshape(units, -1, width) * scoring.scale
    own = packed.index_select(0, owner)  # [C, G, D]
    logits = scoring.capped(torch.bmm(own, blocks.by_block(blocks.keys).transpose(1, 2)).float())
    held = blocks.by_block(blocks.positions)
    visible = held >= 0
    if blocks.window is not None:
        visible &= held > blocks.newest(positions) - blocks.window
    logits = logits.masked_fill(~visible[:, None], -torch.inf)
    highest = blocks.by_unit(logits.amax(dim=-1)).amax(dim=1)  # [U, G]
    sinks = None
    if scoring.sink_logits is not None:
        sinks = scoring.sink_logits.float().view(blocks.heads, -1).repeat(batch, 1)
        highest = torch.maximum(highest, sinks)
    weight = (logits - highest.index_select(0, owner)[:, :, None]).exp()
    total = _sum_by_unit(weight.sum(dim=-1), blocks)  # [U, G]
    if sinks is not None:
        total = total + (sinks - highest).exp()
    part = torch.bmm(weight.to(blocks.values.dtype), blocks.by_block(blocks.values))  # [C, G, Dv]
    out = _sum_by_unit(part.flatten(1).float(), blocks).view(*total.shape, -1) / total[:, :, None]
    if scores and blocks.scores is not None:
        received = weight.detach() / total.detach().index_select(0, owner)[:, :, None]  # scores have no graph
        blocks.scores.add_(received.mean(dim=1).flatten())
    return out.to(part.dtype).view(batch, query_heads, 1, -1)


def attend_one_by_blocks_accelerated(
    query: torch.Tensor, blocks: Blocks, positions: torch.Tensor, scoring: Scoring, *, scores: bool
) -> torch.Tensor:
    """The same by the ragged decode kernel: a unit's blocks lie one behind the other, as it reads them."""
    from ..kernels.ops import ragged_decode_attention

    batch, query_heads, _, width = query.shape
    out, _ = ragged_decode_attention(
        query.reshape(len(blocks.numbers), -1, width), blocks.keys, blocks.values,
        blocks.begin, blocks.rooms, blocks.largest, blocks.heads, scoring.scale, scoring.softcap, scoring.sink_logits,
        positions=blocks.positions, query_positions=positions[:, 0], window=blocks.window,
        scores=blocks.scores if scores else None,
    )  # fmt: skip
    return out.view(batch, query_heads, 1, -1)


def _sum_by_unit(of_blocks: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """``[C, n]`` fp32 -> ``[U, n]``. On the CPU a product: adding up one by one is not made for many numbers there."""
    if of_blocks.device.type == "cpu":
        mine = blocks.owner == blocks.numbers[:, None]
        return mine.to(of_blocks.dtype) @ of_blocks
    return of_blocks.new_zeros(len(blocks.numbers), of_blocks.shape[1]).index_add_(0, blocks.owner, of_blocks)

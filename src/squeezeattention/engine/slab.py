"""A layer of vLLM whose tokens are chosen one by one: any policy, per KV head, in blocks that a request keeps.

::

    blocks of a request   [ 7 | 12 | 3 ]        its slab: claimed when it is admitted, given back when it ends
    slots                 0 .. 3 * block - 1    any token in any slot; whose, is in `positions`

Positions (and H2O's scores) lie in tensors of the layer's own, indexed by block as the keys and values are. A prompt is
attended to exactly, and the tokens that stay are written; a decode step writes over the one that goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..attention.core import Scoring, attend, attend_one
from ..attention.visibility import Visibility
from ..policies import EvictionPolicy, Tokens
from ..policies.ranking import survivors, victim


@dataclass(frozen=True)
class SlabBatch:
    """A batch of requests, as a layer's attention has to know it."""

    offsets: Sequence[int]
    """[R + 1] where each request's new tokens begin."""
    starts: Sequence[int]
    """[R] position of the first of them."""
    prompts: Sequence[int]
    """[R] tokens of its prompt."""
    tables: torch.Tensor
    """[R, n] its blocks."""


class SlabLayer:
    """One layer's slots. Shapes: R requests, H KV heads, Hq query heads, D width, n blocks of b slots, N = n * b."""

    def __init__(self, policy: EvictionPolicy, scale: float, softcap: float | None = None) -> None:
        self.policy = policy
        self.scoring = Scoring(scale, softcap)
        self._positions: torch.Tensor | None = None
        self._scores: torch.Tensor | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, batch: SlabBatch
    ) -> torch.Tensor:
        """Attention of a batch's new tokens, and what stays of them.

        Args:
            query: ``[T, Hq, D]``; key and value ``[T, H, D]``.
            cache: ``[blocks, H, b, 2 * D]``, keys before values; written to.

        Returns:
            ``[T, Hq, D]``.
        """
        self._prepare(cache)
        out = torch.empty_like(query)
        steps: list[tuple[int, int]] = []  # request, token
        for request, (first, last) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
            start, prompt = batch.starts[request], batch.prompts[request]
            read = max(0, min(last - first, prompt - start))
            if read:
                rows = slice(first, first + read)
                out[rows] = self._read(query[rows], key[rows], value[rows], cache, batch.tables[request])
            # An answer that is read again after its request was preempted goes token by token, as it came.
            steps += [(request, token) for token in range(first + read, last)]
        while steps:
            turn = list({request: (request, token) for request, token in reversed(steps)}.values())  # first of each
            steps = [step for step in steps if step not in turn]
            requests, tokens = (torch.tensor(column, device=query.device) for column in zip(*turn, strict=True))
            at = torch.tensor(
                [batch.starts[request] + token - batch.offsets[request] for request, token in turn], device=query.device
            )
            out[tokens] = self._step(query[tokens], key[tokens], value[tokens], cache, batch.tables[requests], at)
        return out

    def _prepare(self, cache: torch.Tensor) -> None:
        shape = cache.shape[:3]
        if self._positions is None or self._positions.shape != shape:
            self._positions = torch.full(shape, -1, dtype=torch.int64, device=cache.device)
            self._scores = torch.zeros(shape, device=cache.device) if self.policy.needs_scores else None

    def _read(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        """A whole prompt: exact attention, and the tokens that stay go into the request's slots."""
        tokens, heads, width = key.shape
        places = torch.arange(tokens, device=query.device)
        visibility = Visibility(places[None], places[None, None], None, fresh=True, ragged=False, ordered=True)
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        wanted = heads if self.policy.needs_scores else None
        out, mass = attend(q, k, v, visibility, self.scoring, score_heads=wanted)
        slots = len(table) * cache.shape[2]
        known = Tokens(places[None, None], places[-1:, None, None], mass)
        kept = survivors(self.policy, known, slots, None)[0].expand(heads, -1)  # [H, K]
        positions = kept.new_full((heads, slots), -1)
        positions[:, : kept.shape[1]] = kept
        content = torch.cat([k[0], v[0]], dim=-1)  # [H, T, 2 * D]
        rows = content.new_zeros(heads, slots, 2 * width)
        index = kept.clamp(min=0)
        rows[:, : kept.shape[1]] = content.gather(1, index[..., None].expand(-1, -1, 2 * width))
        cache[table] = _in_blocks(rows, len(table)).to(cache.dtype)
        if self._positions is not None:
            self._positions[table] = _in_blocks(positions, len(table))
        if self._scores is not None and mass is not None:
            scores = mass.new_zeros(heads, slots)
            scores[:, : kept.shape[1]] = mass[0].gather(1, index)
            self._scores[table] = _in_blocks(scores, len(table))
        return out[0].transpose(0, 1)

    def _step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, tables: torch.Tensor,
        at: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """One token of each of some requests: it takes the slot of the token that goes, or an empty one."""
        held, scores = self._positions, self._scores
        if held is None:
            raise RuntimeError("a decode step before any prompt")
        requests, heads, width = key.shape
        size = cache.shape[2]
        positions = _in_slots(held[tables])  # [R, H, N]
        masses = None if scores is None else _in_slots(scores[tables])
        known = Tokens(positions, at[:, None, None], masses)
        slot = victim(self.policy, known, positions.shape[2], None).expand(requests, heads, 1)
        block = tables.gather(1, slot[..., 0] // size)  # [R, H]
        own, offset = torch.arange(heads, device=key.device).expand(requests, heads), slot[..., 0] % size
        content = torch.cat([key, value], dim=-1).to(cache.dtype)
        cache[block, own, offset] = content
        held[block, own, offset] = at[:, None].expand(requests, heads)
        positions = positions.scatter(2, slot, at[:, None, None].expand(requests, heads, 1))
        kept = _in_slots(cache[tables]).to(query.dtype)  # [R, H, N, 2 * D]
        seen = None if bool((positions >= 0).all()) else positions >= 0
        wanted = None if scores is None else heads
        out, mass = attend_one(
            query[:, :, None], kept[..., :width], kept[..., width:], seen, self.scoring, score_heads=wanted
        )
        if scores is not None and masses is not None and mass is not None:
            masses = masses.scatter(2, slot, 0.0) + mass
            scores[tables] = masses.unflatten(2, (-1, size)).transpose(1, 2)
        return out[:, :, 0]


def _in_blocks(rows: torch.Tensor, blocks: int) -> torch.Tensor:
    """[H, N, ...] -> [n, H, b, ...]."""
    return rows.unflatten(1, (blocks, -1)).transpose(0, 1)


def _in_slots(blocks: torch.Tensor) -> torch.Tensor:
    """[R, n, H, b, ...] -> [R, H, N, ...]."""
    return blocks.transpose(1, 2).flatten(2, 3)

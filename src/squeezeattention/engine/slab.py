"""A layer of vLLM whose tokens are chosen one by one: any policy, per KV head, in blocks that a request keeps.

::

    blocks of a request   [ 7 | 12 | 3 ]          its slab: claimed when it is admitted, given back when it ends
    places                0 .. 3 * H * b - 1      one token of one KV head each: b a block and head, in a row
    rooms                 [ head 0 | 1 | head 2 ........... | head 3 ]      each head's budget, one behind the other

A place is in block ``table[place // (H * b)]``, whose bytes are the same for one head with many tokens as for many
heads with few. Positions (and scores) lie in tensors of the layer's own, indexed as the keys and values are. A prompt
is attended to exactly, and the tokens that stay are written; a decode step writes over the one that goes. For a step
the places of a batch are lent to a store of the library's (cache/ragged.py), which chooses and attends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..attention.core import Scoring, attend
from ..attention.ragged import attend_one_ragged
from ..attention.visibility import Visibility
from ..cache.cutting import cut_units
from ..cache.parts import Parts
from ..cache.ragged import RaggedStore
from ..cache.scorer import TokenScorer
from ..cache.slots import masks_of, slots_of
from ..cache.store import LayerStore
from ..policies import EvictionPolicy, LayerView, Scored
from ..policies.scored import SURE, scores_of
from .places import Places, PlacesByRoom

#: Tokens of a prompt -> places of each KV head.
Rooms = Callable[[int], Sequence[int]]


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
    """[R, n] its blocks; those behind its own are not read."""


class SlabLayer:
    """One layer's places. Shapes: R requests, H KV heads, Hq query heads, D width, blocks of b slots, S places in all
    of a batch, U = R * H units.

    ``rooms``: how many tokens each KV head keeps, by the tokens of the prompt.
    """

    def __init__(self, policy: EvictionPolicy, rooms: Rooms, scale: float, softcap: float | None = None) -> None:
        self.policy = policy
        self.rooms = rooms
        self.scoring = Scoring(scale, softcap)
        self._scores_anything = policy.needs_scores or policy.scores_tokens
        self._places = PlacesByRoom(policy)
        self._positions = torch.empty(0)
        self._scores: torch.Tensor | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, batch: SlabBatch
    ) -> torch.Tensor:
        """Attention of a batch's new tokens, and what stays of them.

        Args:
            query: ``[T, Hq, D]``; key and value ``[T, H, D]``.
            cache: contiguous ``[blocks, H, b, 2 * D]``, whose bytes are taken for rows of one key and one value each;
                written to.

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
                places = self._places.of([self.rooms(prompt)], cache.device)
                slots = places.slots(batch.tables[request : request + 1], cache)
                out[rows] = self._read(query[rows], key[rows], value[rows], cache, places, slots)
            # An answer that is read again after its request was preempted goes token by token, as it came.
            steps += [(request, token) for token in range(first + read, last)]
        while steps:
            turn = list({request: (request, token) for request, token in reversed(steps)}.values())  # first of each
            steps = [step for step in steps if step not in turn]
            requests, tokens = (torch.tensor(column, device=query.device) for column in zip(*turn, strict=True))
            prompts = [batch.prompts[request] for request, _ in turn]
            at = [batch.starts[request] + token - batch.offsets[request] for request, token in turn]
            places = self._places.of([self.rooms(prompt) for prompt in prompts], cache.device)
            slots = places.slots(batch.tables[requests], cache)
            q, k, v = (part[tokens][:, :, None] for part in (query, key, value))
            out[tokens] = self._step(q, k, v, cache, places, slots, at, prompts)[:, :, 0]
        return out

    def _prepare(self, cache: torch.Tensor) -> None:
        slots = cache.shape[:3].numel()
        if len(self._positions) != slots:
            self._positions = torch.full((slots,), -1, dtype=torch.int64, device=cache.device)
            self._scores = torch.zeros(slots, device=cache.device) if self._scores_anything else None

    # ---------------------------------------------------------------- prompts

    def _read(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, places: Places,
        slots: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """A whole prompt ``[T, heads, D]``: exact attention, and the tokens that stay go into the request's slots."""
        tokens, heads, _ = key.shape
        at = torch.arange(tokens, device=query.device)
        visibility = Visibility(at[None], at[None, None], None, fresh=True, ragged=False, ordered=True)
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        wanted = heads if self.policy.needs_scores else None
        out, mass = attend(q, k, v, visibility, self.scoring, score_heads=wanted)
        whole = LayerStore()
        whole.keys, whole.values, whole.positions, whole.scores, whole.used = k, v, at[None, None], mass, tokens
        if isinstance(self.policy, Scored):
            scorer = TokenScorer(self.policy, None, Parts())
            scorer.see_queries(q, at[None], self.scoring)
            scorer.rescore(whole, tokens)
        kept = cut_units(whole, places.rooms, [tokens - 1], self.policy, None)
        _write(cache, slots, kept.keys, kept.values)
        self._positions[slots] = kept.positions
        if self._scores is not None and kept.scores is not None:
            self._scores[slots] = kept.scores
        return out[0].transpose(0, 1)

    # ------------------------------------------------------------------ steps

    def _step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, places: Places,
        slots: torch.Tensor, at: list[int], prompts: list[int],
    ) -> torch.Tensor:  # fmt: skip
        """One token ``[R, heads, 1, D]`` of each of some requests, at positions ``at``: it takes the place of the token
        that goes, or an empty one."""
        width, heads = key.shape[-1], key.shape[1]
        keys, values = _read_from(cache, slots, width, query.dtype)
        scores = None if self._scores is None else self._scores[slots]
        store = RaggedStore(places.units, keys, values, self._positions[slots], scores)
        places.note(store, at)
        self._rescore_if_due(store, at, prompts)
        positions = torch.tensor(at, device=query.device)[:, None]
        taken = slots_of(store, self.policy, positions, None, at)  # [U]
        new = positions.expand(-1, heads).flatten()
        store.insert(taken, key.to(keys.dtype), value.to(values.dtype), new, SURE if self._scorer else 0.0)
        own = slots[taken]
        _write(cache, own, key.reshape(-1, width), value.reshape(-1, width))
        self._positions[own] = new
        follows = self._scorer is not None and self._scorer.follows
        if follows and store.scores is not None:
            store.scores.zero_()
        masks = masks_of(store, positions, None)
        out = attend_one_ragged(query, store, masks, self.scoring, scores=self.policy.needs_scores or follows)
        if follows and self._scorer is not None and (received := store.used_scores()) is not None:
            TokenScorer(self._scorer, None, Parts()).follow(store, received)
        if self._scores is not None and store.scores is not None:
            self._scores[slots] = store.scores
        return out

    @property
    def _scorer(self) -> Scored | None:
        return self.policy if isinstance(self.policy, Scored) else None

    def _rescore_if_due(self, store: RaggedStore, at: list[int], prompts: list[int]) -> None:
        """Score anew what is held of requests whose answers have grown by so many tokens as the policy says."""
        scorer = self._scorer
        if scorer is None or scorer.every is None:
            return
        due = [
            token > prompt and (token - prompt) % scorer.every == 0 for token, prompt in zip(at, prompts, strict=True)
        ]
        if not any(due) or (before := store.used_scores()) is None:
            return
        found = scores_of(scorer, LayerView(*store.view(), store.used_positions(), scale=self.scoring.scale))
        store.set_scores(torch.where(torch.tensor(due, device=found.device)[:, None, None], found, before))


def _rows(cache: torch.Tensor, width: int) -> torch.Tensor:
    """[2 * slots, D]: each slot's key, then its value; shares memory."""
    return cache.view(-1, width)


def _write(cache: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Keys and values ``[n, D]`` into slots int64 ``[n]``."""
    rows = _rows(cache, keys.shape[-1])
    rows[2 * slots] = keys.to(cache.dtype)
    rows[2 * slots + 1] = values.to(cache.dtype)


def _read_from(
    cache: torch.Tensor, slots: torch.Tensor, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[n, D]`` of slots int64 ``[n]``: copies."""
    rows = _rows(cache, width)
    found = rows.index_select(0, torch.cat([2 * slots, 2 * slots + 1])).to(dtype)
    return found[: len(slots)], found[len(slots) :]

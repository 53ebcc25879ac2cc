"""A layer of vLLM whose tokens are chosen one by one: any policy, per KV head, in blocks that a request keeps.

::

    blocks of a request   [ 4 | 9 | 5 | 1 ][ 7 | 12 | 3 ]     its prompt's, until that has been read, and its slab's
    places                                 0 .. 3 * H * b - 1      one token of one KV head each: b a block and head
    rooms                 [ head 0 | 1 | head 2 ........... | head 3 ]      each head's budget, one behind the other

A place is in block ``slab[place // (H * b)]``, whose bytes are the same for one head with many tokens as for many
heads with few. Positions (and scores) lie beside the pool (beside.py), indexed as the keys and values are. A prompt
is attended to exactly, and when its last token has been read those that stay are written to the slab; a decode step
writes over the one that goes. For a step the places of a batch are lent to a store of the library's (cache/ragged.py),
which chooses and attends.

A prompt that is read in pieces, or begins as an earlier one did, lies whole in blocks of its own until its end, and
each piece attends to what lies there. A prompt that is always read in one step has no need of them, and no such blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..attention.core import Scoring, attend
from ..attention.ragged import attend_one_ragged
from ..attention.replay import attend_replayed
from ..attention.visibility import Visibility
from ..cache.cutting import cut_units
from ..cache.parts import Parts
from ..cache.ragged import RaggedStore
from ..cache.scorer import TokenScorer
from ..cache.slots import masks_of, slots_of
from ..cache.store import LayerStore
from ..errors import CacheStateError
from ..policies import EvictionPolicy, LayerView, Scored
from ..policies.scored import SURE, scores_of
from .beside import Beside
from .places import Places, PlacesByRoom
from .rows import prompt_slots, read, read_prompt, write

#: Tokens of a prompt -> places of each KV head.
Rooms = Callable[[int], Sequence[int]]
#: The place where a layer's begin in a request's pool, and how many each of its KV heads has.
Chosen = tuple[int, Sequence[int]]


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
    """[R, n] blocks of its slab, or with ``chosen`` of the slabs of all layers; those behind its own are not read."""
    prompt_tables: torch.Tensor | None = None
    """[R, m] blocks of its prompt, which lies there whole until it has been read; ``None``: prompts are read in one
    step, and lie nowhere."""
    chosen: Sequence[Chosen | None] | None = None
    """[R] budgets of its own, if each prompt has such; ``None`` of one that has not been read yet."""


@dataclass(frozen=True)
class Repetition:
    """Pieces of one prompt, k of m tokens, that the model reads again behind it, as a layer has to know them."""

    table: torch.Tensor
    """[n] blocks of the prompt."""
    prompt: int
    """Its tokens, all of which lie there."""
    columns: torch.Tensor
    """[k, c] positions of those that are repeated, their lead left out."""
    see: Callable[[torch.Tensor], None]
    """Is given the attention that these receive, fp32 ``[1, H, k, c]``."""


class _Piece(NamedTuple):
    """Tokens of a prompt that a step reads."""

    request: int
    rows: slice
    """Of the batch's tokens."""
    start: int
    """Position of the first."""
    lies: torch.Tensor | None
    """[H, N] slots of the prompt up to here, if it lies in blocks."""


class SlabLayer:
    """One layer's places. Shapes: R requests, H KV heads, Hq query heads, D width, blocks of b slots, S places in all
    of a batch, U = R * H units, N tokens of a prompt up to those that are being read.

    ``rooms``: how many tokens each KV head keeps, by the tokens of the prompt.
    """

    def __init__(self, policy: EvictionPolicy, rooms: Rooms, scale: float, softcap: float | None = None) -> None:
        self.policy = policy
        self.rooms = rooms
        self.scoring = Scoring(scale, softcap)
        self._scores_anything = policy.needs_scores or policy.scores_tokens
        self._places = PlacesByRoom(policy)
        self._beside: Beside | None = None
        self._uncut: dict[int, torch.Tensor | None] = {}  # scores of prompts that the last step ended and did not cut

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
        self._uncut.clear()
        out = torch.empty_like(query)
        pieces: list[_Piece] = []
        steps: list[tuple[int, int]] = []  # request, token
        for request, (first, last) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
            some = max(0, min(last - first, batch.prompts[request] - batch.starts[request]))
            if some:
                pieces.append(self._lay_down(key, value, cache, batch, request, slice(first, first + some)))
            # An answer that is read again after its request was preempted goes token by token, as it came.
            steps += [(request, token) for token in range(first + some, last)]
        for piece in pieces:  # all lie there by now: of prompts that begin alike one may read what another writes
            rows = piece.rows
            out[rows] = self._read(query[rows], key[rows], value[rows], cache, batch, piece)
        while steps:
            turn = list({request: (request, token) for request, token in reversed(steps)}.values())  # first of each
            steps = [step for step in steps if step not in turn]
            requests, tokens = (torch.tensor(column, device=query.device) for column in zip(*turn, strict=True))
            prompts = [batch.prompts[request] for request, _ in turn]
            at = [batch.starts[request] + token - batch.offsets[request] for request, token in turn]
            begins, rooms = zip(*(self._rooms(batch, request) for request, _ in turn), strict=True)
            places = self._places.of(rooms, cache.device, begins)
            slots = places.slots(batch.tables[requests], cache)
            q, k, v = (part[tokens][:, :, None] for part in (query, key, value))
            out[tokens] = self._step(q, k, v, cache, places, slots, at, prompts)[:, :, 0]
        return out

    def _prepare(self, cache: torch.Tensor) -> None:
        if self._beside is None or len(self._beside.positions) != cache.shape[:3].numel():
            self._beside = Beside.of(cache, scores=self._scores_anything)
        self._positions, self._scores = self._beside.positions, self._beside.scores

    def _rooms(self, batch: SlabBatch, request: int) -> Chosen:
        if batch.chosen is None:
            return 0, self.rooms(batch.prompts[request])
        chosen = batch.chosen[request]
        if chosen is None:
            raise CacheStateError(
                f"an answer to a prompt of {batch.prompts[request]} tokens goes on, but no budgets were chosen for it: "
                "please report this"
            )
        return chosen

    # ---------------------------------------------------------------- prompts

    def _lay_down(
        self, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, batch: SlabBatch, request: int, rows: slice
    ) -> _Piece:
        """Put some of a prompt into its blocks, if it has any."""
        start = batch.starts[request]
        if batch.prompt_tables is None:
            return _Piece(request, rows, start, None)
        lies = prompt_slots(batch.prompt_tables[request], start + rows.stop - rows.start, cache)
        new = lies[:, start:].flatten()
        write(cache, new, *(part[rows].transpose(0, 1).flatten(0, 1) for part in (key, value)))
        return _Piece(request, rows, start, lies)

    def _read(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, batch: SlabBatch,
        piece: _Piece,
    ) -> torch.Tensor:  # fmt: skip
        """Exact attention of some of a prompt ``[T, heads, D]``; if it ends there, the tokens that stay go into the
        request's slab."""
        start, stop, heads = piece.start, piece.start + len(query), key.shape[1]
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        if start and piece.lies is None:
            raise CacheStateError(
                f"a prompt is read from token {start} on, and the engine was set up for prompts that are read in one "
                "step: please report this"
            )
        if start and piece.lies is not None:
            k, v = read_prompt(cache, piece.lies, key.dtype)
        at = torch.arange(stop, device=query.device)
        visibility = Visibility(at[None, start:], at[None, None], None, fresh=not start, ragged=False, ordered=True)
        wanted = heads if self.policy.needs_scores else None
        out, mass = attend(q, k, v, visibility, self.scoring, score_heads=wanted)
        if mass is not None and piece.lies is not None and self._scores is not None:
            mass[0, :, :start] += self._scores[piece.lies[:, :start]]
            self._scores[piece.lies] = mass[0]
        if stop == batch.prompts[piece.request]:
            whole = LayerStore()
            whole.keys, whole.values, whole.positions, whole.scores, whole.used = k, v, at[None, None], mass, stop
            if isinstance(self.policy, Scored):
                scorer = TokenScorer(self.policy, None, Parts())
                scorer.see_queries(q, at[None, start:], self.scoring)
                scorer.rescore(whole, stop)
            if batch.chosen is None or batch.chosen[piece.request] is not None:
                self._keep(whole, cache, batch.tables[piece.request], *self._rooms(batch, piece.request))
            else:  # not beside the pool: another prompt may begin in the same blocks
                self._uncut[piece.request] = whole.scores
        return out[0].transpose(0, 1)

    def cut(
        self, request: int, prompt: int, table: torch.Tensor, slab: torch.Tensor, begin: int, rooms: Sequence[int],
        cache: torch.Tensor,
    ) -> None:  # fmt: skip
        """Cut the prompt of the last batch's ``request``, which ended there and had no budgets yet, to these.

        ``prompt``: its tokens; ``table`` and ``slab``: int64 ``[n]`` blocks of it, and of the slabs of all layers.
        """
        self._prepare(cache)
        lies = prompt_slots(table, prompt, cache)
        whole = LayerStore()
        whole.keys, whole.values = read_prompt(cache, lies, cache.dtype)
        whole.positions, whole.used = torch.arange(prompt, device=cache.device)[None, None], prompt
        whole.scores = self._uncut.pop(request)
        self._keep(whole, cache, slab, begin, rooms)

    def _keep(
        self, whole: LayerStore, cache: torch.Tensor, slab: torch.Tensor, begin: int, rooms: Sequence[int]
    ) -> None:
        """Of a prompt that has been read, ``[1, H, N, D]``, the tokens that stay go into the slab, blocks ``[n]``."""
        places = self._places.of([rooms], cache.device, [begin])
        slots = places.slots(slab[None], cache)
        kept = cut_units(whole, places.rooms, [whole.used - 1], self.policy, None)
        write(cache, slots, kept.keys, kept.values)
        self._positions[slots] = kept.positions
        if self._scores is not None and kept.scores is not None:
            self._scores[slots] = kept.scores

    def repeat(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, given: Repetition
    ) -> torch.Tensor:
        """Attention ``[k * m, Hq, D]`` of pieces that are read again: over the whole prompt, and each over its own."""
        lies, pieces = prompt_slots(given.table, given.prompt, cache), len(given.columns)
        held_key, held_value = read_prompt(cache, lies, key.dtype)
        q, k, v = (part.unflatten(0, (pieces, -1)).transpose(1, 2) for part in (query, key, value))
        at = torch.arange(given.prompt + q.shape[2], device=query.device)
        out, received = attend_replayed(
            q, k, v, held_key, held_value, at[None, None, : given.prompt], at[None, given.prompt :],
            given.columns[None], None, self.scoring,
        )  # fmt: skip
        given.see(received)
        return out.transpose(1, 2).flatten(0, 1)

    # ------------------------------------------------------------------ steps

    def _step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, places: Places,
        slots: torch.Tensor, at: list[int], prompts: list[int],
    ) -> torch.Tensor:  # fmt: skip
        """One token ``[R, heads, 1, D]`` of each of some requests, at positions ``at``: it takes the place of the token
        that goes, or an empty one."""
        width, heads = key.shape[-1], key.shape[1]
        keys, values = read(cache, slots, query.dtype)
        scores = None if self._scores is None else self._scores[slots]
        store = RaggedStore(places.units, keys, values, self._positions[slots], scores)
        places.note(store, at)
        self._rescore_if_due(store, at, prompts)
        positions = torch.tensor(at, device=query.device)[:, None]
        taken = slots_of(store, self.policy, positions, None, at)  # [U]
        new = positions.expand(-1, heads).flatten()
        store.insert(taken, key.to(keys.dtype), value.to(values.dtype), new, SURE if self._scorer else 0.0)
        own = slots[taken]
        write(cache, own, key.reshape(-1, width), value.reshape(-1, width))
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
